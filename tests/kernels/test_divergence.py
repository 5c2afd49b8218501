"""Every backend against the float64 reference, for every kind; and what a call may ask for."""

from dataclasses import replace

import pytest
import torch

from selfkd.errors import UsageError
from selfkd.kernels import KINDS, fused_linear_divergence
from selfkd.kernels.build import NARROW, cpu_flags
from tests.kernels.cases import BACKENDS, MIXED, errors, random_case

TEMPERATURES = (0.5, 1.0, 2.0)


def settings(kind: str) -> list[dict[str, object]]:
    """What to try of beta and temperature; jsd has no limits, the skewed kinds only the lower."""
    betas = {"jsd": (0.1, 0.5, 0.9), "skew_kl": (0, 0.1, 0.5, 0.9)}
    betas["skew_reverse_kl"] = betas["skew_kl"]
    return [
        {"kind": kind, "beta": beta, "temperature": temperature}
        for beta in betas.get(kind, (0.5,))
        for temperature in TEMPERATURES
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_the_reference(kind, backend):
    case = random_case(dtype=torch.float32, teacher_hidden=10)
    for options in settings(kind):
        truth = case.to(torch.float64).dense(backend="reference", **options)
        got = case.dense(backend=backend, chunk_size=5, **options)
        found = errors(got, truth)
        assert max(found.values()) < (1e-4 if kind == "tvd" else 1e-5), (options, found)
        assert found["loss"] < 2e-6, (options, found)
        assert [grad.dtype for grad in got[1]] == [torch.float32] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_rounds_factors_and_gradients_but_not_the_loss(kind, backend):
    case = random_case(tokens=40, dtype=torch.bfloat16, vocabulary=515)
    for options in settings(kind)[:2]:
        truth = case.to(torch.float64).dense(backend="reference", **options)
        got = case.dense(backend=backend, chunk_size=16, **options)
        found = errors(got, truth)
        assert max(found.values()) < 1e-2, (options, found)
        assert found["loss"] < 2e-6, (options, found)
        assert [grad.dtype for grad in got[1]] == [torch.bfloat16] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "hidden", "vocabulary"),
    [(1, 1, 1), (1, 2, 2), (9, 3, 17), (8, 16, 48), (65, 49, 97), (3, 576, 1031)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_size_has_to_be_a_multiple_of_anything(tokens, hidden, vocabulary, dtype, backend):
    case = random_case(tokens, hidden, vocabulary, dtype=dtype, bias=False, seed=1)
    case = replace(case, token_weight=None)
    options = {"temperature": max(1.0, hidden**0.5 / 4)}
    truth = case.to(torch.float64).dense(backend="reference", **options)
    found = errors(case.dense(backend=backend, chunk_size=32, **options), truth)
    assert max(found.values()) < (1e-2 if dtype == torch.bfloat16 else 2e-5), found


def test_the_limits_of_beta_are_named_kinds():
    case = random_case()
    for kind, limit in (("skew_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")):
        limiting, _ = case.dense(kind=kind, beta=0.0)
        assert torch.equal(limiting.loss, case.dense(kind=limit)[0].loss)
    for beta, limit in ((1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")):
        near, _ = case.dense(kind="jsd", beta=beta)
        exact, _ = case.dense(kind=limit)
        assert near.loss.item() / (beta * (1 - beta)) == pytest.approx(exact.loss.item(), rel=1e-2)
    for kind, beta, words in (
        ("jsd", 0.0, "kind='forward_kl'"),
        ("jsd", 1.0, "kind='reverse_kl'"),
        ("skew_kl", 1.0, "compares a model with itself"),
        ("skew_reverse_kl", -0.1, "outside"),
    ):
        with pytest.raises(UsageError, match=words):
            case.dense(kind=kind, beta=beta)


def test_beta_means_nothing_to_the_other_kinds():
    case = random_case()
    for kind in set(KINDS) - set(MIXED):
        first, second = (case.dense(kind=kind, beta=beta)[0] for beta in (0.0, 0.9))
        assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_the_normalizer_is_the_weight_sum_or_what_is_given(backend):
    case = random_case(dtype=torch.float32)
    assert case.token_weight is not None
    mean, _ = case.dense(backend=backend)
    total, gradients = case.dense(backend=backend, normalizer=1)
    step, parts = case.dense(backend=backend, normalizer=torch.tensor(8.0))
    weighted = (mean.per_token_N * case.token_weight).sum()
    assert total.loss.item() == pytest.approx(float(weighted), rel=1e-5)
    assert mean.loss.item() == pytest.approx(float(weighted / case.token_weight.sum()), rel=1e-5)
    assert step.loss.item() == pytest.approx(float(weighted / 8), rel=1e-5)
    for whole, part in zip(gradients, parts, strict=True):
        assert torch.allclose(whole / 8, part, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_micro_batches_with_the_steps_normalizer_add_up(backend):
    case = random_case(tokens=24, dtype=torch.float32)
    whole, gradients = case.dense(backend=backend, normalizer=7.0)
    parts = []
    for cut in (slice(0, 5), slice(5, 24)):
        token_weight = torch.zeros(24)
        assert case.token_weight is not None
        token_weight[cut] = case.token_weight[cut]
        part = replace(case, token_weight=token_weight)
        parts.append(part.dense(backend=backend, normalizer=7.0))
    assert whole.loss.item() == pytest.approx(float(parts[0][0].loss + parts[1][0].loss), rel=1e-5)
    for total, one, other in zip(gradients, parts[0][1], parts[1][1], strict=True):
        assert torch.allclose(total, one + other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_wants_a_gradient_gets_one(backend, monkeypatch):
    from selfkd.kernels import cpu, engine

    calls = []
    for owner in (cpu.CpuEngine, engine.TorchEngine):
        for name in ("hidden_gradient", "weight_gradient"):
            original = getattr(owner, name)

            def spy(self, *args, name=name, original=original):
                calls.append(name)
                return original(self, *args)

            monkeypatch.setattr(owner, name, spy)
    case = random_case(dtype=torch.float32, bias=False)
    hidden, weight = case.leaves()

    def run(hidden, weight):
        calls.clear()
        return fused_linear_divergence(
            hidden, weight, case.teacher_hidden, case.teacher_weight, backend=backend
        ).loss

    run(hidden, weight.detach()).backward()
    assert set(calls) == {"hidden_gradient"} and hidden.grad is not None
    run(hidden.detach(), weight).backward()
    assert set(calls) == {"weight_gradient"}
    with torch.no_grad():
        quiet = run(hidden, weight)
    assert not calls and not quiet.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shared_head_is_projected_once_with_the_same_result(backend, monkeypatch):
    from selfkd.kernels import cpu, engine

    calls = []
    for owner in (cpu.CpuEngine, engine.TorchEngine):
        original = owner.project

        def spy(self, hidden, *args, original=original):
            calls.append(len(hidden))
            return original(self, hidden, *args)

        monkeypatch.setattr(owner, "project", spy)
    case = random_case(dtype=torch.float32, bias=False)
    (hidden, head), taught = case.leaves(), case.teacher_hidden
    tied = fused_linear_divergence(hidden, head, taught, head, backend=backend)
    assert calls == [2 * 19]
    apart = fused_linear_divergence(hidden, head, taught, head.detach().clone(), backend=backend)
    assert calls == [2 * 19, 19, 19]
    assert torch.equal(tied.loss, apart.loss)
    grads = [torch.autograd.grad(x.loss, (hidden, head)) for x in (tied, apart)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [False, True])
def test_tokens_without_weight_are_never_multiplied(sparse, backend, monkeypatch):
    from selfkd.kernels import cpu, engine

    rows = {"project": 0, "hidden_gradient": 0, "weight_gradient": 0}
    for owner in (cpu.CpuEngine, engine.TorchEngine):
        for name in rows:
            original = getattr(owner, name)

            def spy(self, first, *args, name=name, original=original):
                rows[name] += len(first)
                return original(self, first, *args)

            monkeypatch.setattr(owner, name, spy)
    case = random_case(dtype=torch.float32, bias=False)
    assert case.token_weight is not None
    count = int((case.token_weight != 0).sum())
    assert count == 12 < len(case.hidden)
    if sparse:
        case.sparse(*case.top(6), backend=backend, chunk_size=5)
    else:
        case.dense(backend=backend, chunk_size=5)
    models = 1 if sparse else 2
    assert rows == {
        "project": models * count, "hidden_gradient": count, "weight_gradient": count
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_decides_what_is_multiplied(backend):
    case = random_case(tokens=40, dtype=torch.float32)
    truth = case.to(torch.float64).dense(backend="reference")
    plain = errors(case.dense(backend=backend), truth)
    with torch.autocast("cpu", torch.bfloat16):
        got = case.dense(backend=backend)
    rounded = errors(got, truth)
    widened = backend == "cpu" and NARROW not in cpu_flags()
    assert plain["loss"] < 2e-6
    assert rounded["loss"] == plain["loss"] if widened else 2e-6 < rounded["loss"] < 2e-2
    assert rounded["weight"] < 3e-2
    assert [grad.dtype for grad in got[1]] == [torch.float32] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "kl"}, "kind 'kl' is unknown"),
        ({"temperature": 0.0}, "temperature"),
        ({"beta": 1.5}, "outside"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown"),
        ({"chunk_size": 0}, "chunk_size 0"),
        ({"normalizer": 0}, "normalizer is 0.0"),
        ({"weight_N": torch.ones(3)}, r"weight_N has shape \(3,\)"),
        ({"weight_N": torch.full((19,), torch.nan)}, "not finite"),
        ({"student_bias_V": torch.ones(2)}, "student_bias_V has shape"),
    ],
)
def test_mistakes_are_named(change, words):
    case = random_case(dtype=torch.float32)
    tensors = (case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)
    with pytest.raises(UsageError, match=words):
        fused_linear_divergence(*tensors, **change)


def test_tensors_that_do_not_fit_are_named():
    h, w, t, s = torch.ones(3, 4), torch.ones(7, 4), torch.ones(3, 5), torch.ones(7, 5)
    for tensors, words in (
        ((h, w[:, :2], t, s), "student_hidden_NH has shape"),
        ((h, w, t, s[:6]), "Cut padded rows"),
        ((h, w, t[:2], s), "teacher_hidden_NH 2"),
        ((h.long(), w, t, s), "not a floating dtype"),
        ((h, w[:0], t, s[:0]), "no rows"),
    ):
        with pytest.raises(UsageError, match=words):
            fused_linear_divergence(*tensors)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="nothing is compiled here")
def test_long_sums_are_as_exact_as_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 2048, generator=draw)
    head = torch.randn(500, 2048, generator=draw) * 2 / 2048**0.5
    teacher = hidden + 0.05 * torch.randn(64, 2048, generator=draw)  # so close that errors show

    def gradient(dtype: torch.dtype, backend: str) -> torch.Tensor:
        student = hidden.to(dtype).requires_grad_()
        given = student, head.to(dtype), teacher.to(dtype), head.to(dtype)
        loss = fused_linear_divergence(*given, backend=backend).loss
        return torch.autograd.grad(loss, student)[0].double()

    exact = gradient(torch.float64, "reference")
    ours, torchs = (
        float((gradient(torch.float32, b) - exact).norm() / exact.norm()) for b in ("cpu", "torch")
    )
    assert ours < 1.5 * torchs < 3e-5
