"""What holds for any logits: signs, symmetry, invariances, and gradients by finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from selfkd.errors import UsageError
from selfkd.kernels import KINDS, fused_linear_divergence, pages, sparse_linear_divergence
from tests.kernels.cases import BACKENDS, apart, logits_case, random_case

quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**31)
scales = st.sampled_from([1e-3, 1.0, 30.0, 3e3])


def two_models(seed: int, scale: float, size: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 5, size, generator=source) * scale
    return first, second


@quick
@given(seeds, scales, st.sampled_from(KINDS), st.sampled_from(BACKENDS), st.floats(0.01, 0.99))
def test_never_negative_and_bounded_where_it_is(seed, scale, kind, backend, beta):
    student, teacher = two_models(seed, scale)
    got, gradients = logits_case(student, teacher).dense(kind=kind, backend=backend, beta=beta)
    assert got.per_token_N.min() >= -1e-7
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Probabilities sum to 1 whatever the logits do, so a row's gradient sums to 0.
    of_logits = gradients[1].sum(0)
    assert of_logits.abs().max() <= 1e-5 * max(1.0, float(gradients[1].abs().max()))
    if kind in ("jsd", "tvd"):
        assert got.per_token_N.max() <= (0.693148 if kind == "jsd" else 1 + 1e-5)


@quick
@given(seeds, scales, st.sampled_from(BACKENDS))
def test_jsd_at_one_half_is_symmetric(seed, scale, backend):
    student, teacher = two_models(seed, scale)
    one, _ = logits_case(student, teacher).dense(backend=backend)
    other, _ = logits_case(teacher, student).dense(backend=backend)
    assert torch.allclose(one.per_token_N, other.per_token_N, rtol=1e-5, atol=1e-8)


@quick
@given(seeds, st.floats(-100, 100), st.sampled_from(KINDS), st.sampled_from(BACKENDS))
def test_a_shift_of_a_models_logits_changes_nothing(seed, shift, kind, backend):
    case = random_case(seed=seed % 1000, dtype=torch.float64, vocabulary=31)
    assert case.bias is not None and case.teacher_bias is not None
    plain, _ = case.dense(kind=kind)
    case.bias.add_(shift)
    case.teacher_bias.sub_(shift)
    moved, _ = case.to(torch.float32).dense(kind=kind, backend=backend)
    assert moved.loss.item() == pytest.approx(plain.loss.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_chunk_size_changes_nothing(kind, backend):
    case = random_case(tokens=33, dtype=torch.float32)
    whole = case.dense(kind=kind, backend=backend, chunk_size=33)
    for chunk_size in (1, 2, 7, 32):
        got = case.dense(kind=kind, backend=backend, chunk_size=chunk_size)
        assert apart(got[0].loss, whole[0].loss) < 1e-6
        assert apart(got[0].per_token_N, whole[0].per_token_N) < 1e-6
        assert max(apart(a, b) for a, b in zip(got[1], whole[1], strict=True)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    case = random_case(tokens=4, hidden=3, vocabulary=7)

    def loss(hidden, weight, bias):
        return fused_linear_divergence(
            hidden,
            weight,
            case.teacher_hidden,
            case.teacher_weight,
            weight_N=case.token_weight,
            kind=kind,
            beta=0.3,
            temperature=1.5,
            student_bias_V=bias,
            backend="torch",
            chunk_size=2,
        ).loss

    assert torch.autograd.gradcheck(loss, case.leaves())


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_gradients_by_finite_differences(kind):
    case = random_case(tokens=4, hidden=3, vocabulary=7)
    ids, logprobs = case.top(3)

    def loss(hidden, weight, bias):
        return sparse_linear_divergence(
            hidden,
            weight,
            ids,
            logprobs,
            kind=kind,
            beta=0.3,
            temperature=1.5,
            student_bias_V=bias,
            backend="torch",
        ).loss

    assert torch.autograd.gradcheck(loss, case.leaves())


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensor_grows_with_tokens_times_vocabulary(backend, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "selfkd.kernels.chunked.empty", lambda *a: asked.append(a[0]) or pages.empty(*a)
    )
    case = random_case(tokens=512, hidden=8, vocabulary=1000, dtype=torch.float32, bias=False)
    with Largest() as largest:
        case.dense(backend=backend, chunk_size=16)
    row = 1000 + 32  # a compiled engine pads its rows
    assert largest.elements <= 2 * 16 * row
    assert max(a * b for a, b in asked) <= 2 * 16 * row


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_second_backward_gives_the_same(backend):
    case = random_case(dtype=torch.float32, bias=False)
    hidden, weight = case.leaves()
    loss = fused_linear_divergence(
        hidden, weight, case.teacher_hidden, case.teacher_weight, backend=backend
    ).loss
    loss.backward(retain_graph=True)
    assert hidden.grad is not None and weight.grad is not None
    once = hidden.grad.clone(), weight.grad.clone()
    (2 * loss).backward()
    assert torch.allclose(hidden.grad, 3 * once[0]) and torch.allclose(weight.grad, 3 * once[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_refused_not_wrong(backend):
    """Also of a sum with something else, in which a missing part would go unnoticed."""
    case = random_case(tokens=3, hidden=2, vocabulary=5, dtype=torch.float32, bias=False)
    hidden, weight = case.leaves()
    taught = case.teacher_hidden, case.teacher_weight
    loss = fused_linear_divergence(hidden, weight, *taught, backend=backend).loss
    with pytest.raises(UsageError, match="no second derivatives") as told:
        torch.autograd.grad(loss + hidden.square().sum(), hidden, create_graph=True)
    assert "backend='reference'" in (told.value.remedy or "")
    wide = case.to(torch.float64)

    def exact(hidden, weight):
        taught = wide.teacher_hidden, wide.teacher_weight
        return fused_linear_divergence(hidden, weight, *taught, backend="reference").loss

    assert torch.autograd.gradgradcheck(exact, wide.leaves())


@pytest.mark.parametrize("backend", BACKENDS)
def test_descending_the_gradient_reaches_the_teacher(backend):
    case = random_case(tokens=16, hidden=8, vocabulary=50, dtype=torch.float32, bias=False)
    hidden, weight = case.leaves()
    optimizer = torch.optim.Adam([hidden, weight], lr=0.1)
    losses = []
    for _ in range(60):
        loss = fused_linear_divergence(
            hidden, weight, case.teacher_hidden, case.teacher_weight, backend=backend
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
