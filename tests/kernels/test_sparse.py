"""A teacher of whom the k likeliest tokens are known."""

from itertools import pairwise

import pytest
import torch

from selfkd.errors import UsageError
from selfkd.kernels import KINDS, sparse_linear_divergence
from tests.kernels.cases import BACKENDS, errors, logits_case, random_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(kind, backend):
    for temperature in (0.5, 1.0, 2.0):
        case = random_case(dtype=torch.float32)
        top = case.top(6, temperature)
        options = {"kind": kind, "beta": 0.3, "temperature": temperature}
        truth = case.to(torch.float64).sparse(*top, backend="reference", **options)
        found = errors(case.sparse(*top, backend=backend, chunk_size=5, **options), truth)
        assert max(found.values()) < 5e-5, (options, found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16(backend):
    case = random_case(dtype=torch.bfloat16)
    top = case.top(6)
    truth = case.to(torch.float64).sparse(*top, backend="reference")
    found = errors(case.sparse(*top, backend=backend), truth)
    assert max(found.values()) < 1e-2 and found["loss"] < 2e-6, found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_knowing_every_token_is_the_full_divergence(kind, backend):
    case = random_case(vocabulary=24, dtype=torch.float32)
    whole = type(case)(
        case.hidden,
        case.weight,
        case.bias,
        case.teacher_hidden,
        case.teacher_weight,
        token_weight=case.token_weight,
    )
    full = whole.dense(kind=kind, backend=backend)
    known = whole.sparse(*whole.top(24), kind=kind, backend=backend)
    found = errors(known, full)
    assert max(found.values()) < (2e-4 if kind == "tvd" else 2e-5), found


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_known_never_say_less(kind):
    case = random_case(vocabulary=60, bias=False)
    losses = [case.sparse(*case.top(k), kind=kind)[0].per_token_N for k in (1, 4, 16, 59)]
    losses.append(case.dense(kind=kind)[0].per_token_N)
    assert losses[0].min() >= 0
    for fewer, more in pairwise(losses):
        assert (fewer <= more + 1e-12).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tail_keeps_the_student_from_overconfidence(backend):
    """Renormalizing or cutting the tail would push all mass onto the known tokens."""
    student = torch.zeros(1, 10)
    student[0, :2] = 8.0  # 0.998 on the two known ones, where the teacher has 0.6
    case = logits_case(student, torch.zeros(1, 10))
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[0.3, 0.3]]).log()
    got, (_, gradient) = case.sparse(ids, logprobs, backend=backend)
    assert got.loss > 0
    assert (gradient[:2] > 0).all() and (gradient[2:] < 0).all()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_certain_teacher_is_cross_entropy(backend):
    case = random_case(dtype=torch.float32, bias=False)
    ids = torch.arange(19).unsqueeze(-1)
    got, _ = case.sparse(ids, torch.zeros(19, 1), backend=backend)
    logits = case.hidden @ case.weight.T
    truth = torch.nn.functional.cross_entropy(logits, ids.squeeze(-1), reduction="none")
    counted = case.token_weight != 0
    assert torch.allclose(got.per_token_N[counted], truth[counted], rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_padding_is_no_token(backend):
    case = random_case(dtype=torch.float32)
    ids, logprobs = case.top(4)
    plain, gradients = case.sparse(ids, logprobs, backend=backend)
    nowhere = torch.full((19, 2), -1)
    padded, others = case.sparse(
        torch.cat([nowhere, ids], 1),
        torch.cat([torch.full((19, 2), 0.0), logprobs], 1),
        backend=backend,
    )
    assert torch.allclose(plain.per_token_N, padded.per_token_N, rtol=1e-6)
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("ids", "logprobs", "words"),
    [
        ([[0], [1]], [[-1.0], [-1.0]], "both should be"),
        ([[0, 9]], [[-1.0, -2.0]], "outside the vocabulary 9"),
        ([[3, 3]], [[-1.0, -2.0]], "twice"),
        ([[3, 4]], [[-1.0, 0.5]], "above 0"),
        ([[3, 4]], [[-1.0, float("nan")]], "above 0 or NaN"),
        ([[]], [[]], "k is 0"),
    ],
)
def test_mistakes_are_named(ids, logprobs, words):
    with pytest.raises(UsageError, match=words):
        sparse_linear_divergence(
            torch.ones(1, 2), torch.ones(9, 2), torch.tensor(ids), torch.tensor(logprobs)
        )
