"""Extreme logits, certain and equal distributions, no tokens, odd memory layouts."""

from dataclasses import replace

import pytest
import torch

from selfkd.kernels import KINDS, fused_linear_divergence
from tests.kernels.cases import BACKENDS, errors, logits_case, random_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits(kind, backend):
    source = torch.Generator().manual_seed(0)
    student = torch.randn(6, 40, generator=source).round(decimals=1)
    teacher = torch.randn(6, 40, generator=source).round(decimals=1)
    student[0, 3] = 1e4
    teacher[1, 4] = 1e4
    student[2, 5], teacher[2, 6] = 1e4, 1e4
    student[3], teacher[3, ::2] = -1e4, -1e4
    student[4, :20], teacher[4, 20:] = 1e4, 1e4
    case = logits_case(student.float(), teacher.float())
    truth = case.to(torch.float64).dense(kind=kind, backend="reference")
    found = errors(case.dense(kind=kind, backend=backend), truth)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_forbids_a_token_for_both(kind, backend):
    case = random_case(tokens=4, vocabulary=30, dtype=torch.float32)
    assert case.bias is not None and case.teacher_bias is not None
    case.bias[7] = case.teacher_bias[7] = -torch.inf
    kept = [i for i in range(30) if i != 7]
    got, gradients = case.dense(kind=kind, backend=backend)
    without = type(case)(
        case.hidden,
        case.weight[kept],
        case.bias[kept],
        case.teacher_hidden,
        case.teacher_weight[kept],
        case.teacher_bias[kept],
        case.token_weight,
    )
    truth, _ = without.dense(kind=kind, backend="reference")
    assert got.loss.item() == pytest.approx(truth.loss.item(), rel=1e-5)
    if backend != "reference":
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[2][7] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_models_have_no_divergence_and_no_gradient(kind, backend, dtype):
    case = random_case(dtype=dtype)
    case = replace(
        case, teacher_hidden=case.hidden, teacher_weight=case.weight, teacher_bias=case.bias
    )
    got, gradients = case.dense(kind=kind, backend=backend)
    assert got.loss == 0
    assert got.per_token_N.abs().max() == 0
    assert all(gradient.abs().max() < 1e-7 for gradient in gradients)
    assert torch.equal(got.agreement_N > 0, case.token_weight != 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_certain_models(kind, backend):
    """Both certain: of the same token (twice, once beyond rounding), then of different ones."""
    student = torch.zeros(3, 9)
    student[:2, 2], student[2, 2] = 50, 50
    student[1, 2] = 1e4
    teacher = torch.zeros(3, 9)
    teacher[0, 2], teacher[1, 2], teacher[2, 4] = 50, 1e4, 50
    got, gradients = logits_case(student, teacher).dense(kind=kind, backend=backend, beta=0.5)
    *same, different = got.per_token_N.tolist()
    expected = {"forward_kl": 50.0, "reverse_kl": 50.0, "tvd": 1.0}.get(kind, 0.693147)
    assert same == [0, 0]
    # Of the hidden states a row is a token's; of the head a column is, as they pick columns.
    assert gradients[0][:2].abs().max() < 1e-6 and gradients[1][:, :2].abs().max() < 1e-6
    assert different == pytest.approx(expected, rel=1e-5)
    assert got.agreement_N.tolist() == [1, 1, 0]
    assert got.student_entropy_N.abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("tokens", [0, 3])
def test_no_token_that_counts(tokens, backend):
    case = random_case(tokens=tokens, dtype=torch.float32)
    case = replace(case, token_weight=torch.zeros(tokens))
    got, gradients = case.dense(backend=backend)
    assert got.loss == 0 and got.per_token_N.tolist() == [0] * tokens
    assert [gradient.shape for gradient in gradients] == [x.shape for x in case.leaves()]
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipped_tokens_may_hold_anything(backend):
    case = random_case(dtype=torch.float32)
    clean, gradients = case.dense(backend=backend)
    case.hidden[0], case.teacher_hidden[3] = torch.nan, torch.inf
    dirty, others = case.dense(backend=backend)
    assert torch.equal(clean.loss, dirty.loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_in_a_token_that_counts_is_not_swallowed(backend):
    case = random_case(dtype=torch.float32)
    case.hidden[1, 2] = torch.nan
    got, _ = case.dense(backend=backend)
    assert got.loss.isnan() and got.per_token_N[1].isnan() and not got.per_token_N[2].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_layout_does_not_matter(backend, dtype):
    case = random_case(tokens=20, dtype=dtype)
    plain = case.dense(backend=backend)
    wide = torch.zeros(20, 40, dtype=dtype)
    wide[:, 1::3] = case.hidden
    strided = type(case)(
        wide[:, 1::3],
        case.weight.T.contiguous().T,
        case.bias,
        torch.cat([case.teacher_hidden] * 2, 1)[:, :13],
        torch.cat([case.teacher_weight] * 2, 1)[:, 13:],
        case.teacher_bias,
        case.token_weight,
    )
    hidden = strided.hidden.requires_grad_()
    got = fused_linear_divergence(
        hidden,
        strided.weight,
        strided.teacher_hidden,
        strided.teacher_weight,
        weight_N=strided.token_weight,
        student_bias_V=strided.bias,
        teacher_bias_V=strided.teacher_bias,
        backend=backend,
    )
    (gradient,) = torch.autograd.grad(3 * got.loss, hidden)
    assert torch.allclose(got.loss, plain[0].loss, rtol=1e-6)
    assert torch.allclose(gradient, plain[1][0], rtol=1e-3, atol=1e-6)
