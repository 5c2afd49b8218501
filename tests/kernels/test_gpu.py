"""The Triton backend against the reference: on a GPU where there is one, else interpreted.

The interpreter has to be asked for before Triton is imported, hence the process of its own.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch

from selfkd.errors import UsageError
from selfkd.kernels import KINDS
from tests.kernels.cases import MIXED, Case, Result, errors, logits_case, random_case

triton = pytest.importorskip("triton", reason="Triton is not installed")

Solve = Callable[..., Result]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def solve() -> Iterator[Solve]:
    """`solve(case, "dense" or "sparse", *args, **options)` on the Triton backend."""
    if torch.cuda.is_available():
        yield partial(compute, "cuda")
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(torch.set_num_threads, 1).result()
        yield lambda *args, **options: pool.submit(compute, "cpu", *args, **options).result()


def compute(device: str, case: Case, method: str, *args: torch.Tensor, **options: Any) -> Result:
    """Runs where Triton does; what comes back is on the CPU and without history."""
    case, args = case.on(device), tuple(arg.to(device) for arg in args)
    got, gradients = getattr(case, method)(*args, backend="triton", **options)
    assert got.backend == "triton"
    tensors = [f.name for f in fields(got) if f.name != "backend"]
    got = replace(got, **{name: getattr(got, name).detach().cpu() for name in tensors})
    return got, [gradient.cpu() for gradient in gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(solve, kind, dtype):
    """Seven tokens that count, two at a time: a group of three chunks, and one of one token."""
    case = random_case(tokens=11, vocabulary=203, dtype=dtype, teacher_hidden=10)
    narrow = dtype == torch.bfloat16
    for beta, temperature in ((0.5, 1.0), (0.1, 0.5), (0.9, 2.0)) if kind in MIXED else ((0, 2.0),):
        options = {"kind": kind, "beta": beta, "temperature": temperature}
        truth = case.to(torch.float64).dense(backend="reference", **options)
        found = errors(solve(case, "dense", chunk_size=2, **options), truth)
        limit = 1e-2 if narrow else 1e-4 if kind == "tvd" else 1e-5
        assert max(found.values()) < limit, (options, found)
        assert found["loss"] < 2e-6, (options, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_teacher_agrees_with_the_reference(solve, kind, dtype):
    case = random_case(tokens=8, vocabulary=203, dtype=dtype)
    ids, logprobs = case.top(6, 2.0)
    ids[4, 3:] = -1
    options = {"kind": kind, "beta": 0.3, "temperature": 2.0}
    truth = case.to(torch.float64).sparse(ids, logprobs, backend="reference", **options)
    found = errors(solve(case, "sparse", ids, logprobs, chunk_size=2, **options), truth)
    assert max(found.values()) < (1e-2 if dtype == torch.bfloat16 else 5e-5), found


def test_knowing_every_token_is_the_full_divergence(solve):
    case = random_case(tokens=4, vocabulary=24, dtype=torch.float32)
    case = replace(case, teacher_bias=None)
    found = errors(solve(case, "sparse", *case.top(24)), case.dense(kind="forward_kl"))
    assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits(solve, kind):
    source = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 40, generator=source).round(decimals=1)
    student[0, 3] = 1e4
    teacher[1, 4] = 1e4
    student[2, 5], teacher[2, 6] = 1e4, 1e4
    student[3], teacher[3, ::2] = -1e4, -1e4
    student[4, :20], teacher[4, 20:] = 1e4, 1e4
    case = logits_case(student, teacher)
    truth = case.to(torch.float64).dense(kind=kind, backend="reference")
    found = errors(solve(case, "dense", kind=kind), truth)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_and_forbidden_tokens(solve, kind):
    case = random_case(tokens=4, vocabulary=30, dtype=torch.float32)
    assert case.bias is not None
    case.bias[7] = -torch.inf
    case = replace(
        case, teacher_hidden=case.hidden, teacher_weight=case.weight, teacher_bias=case.bias
    )
    got, gradients = solve(case, "dense", kind=kind)
    assert got.loss == 0
    assert all(gradient.abs().max() < 1e-7 for gradient in gradients)
    assert torch.equal(got.agreement_N > 0, case.token_weight != 0)


def test_no_token_one_token_and_a_nan(solve):
    case = random_case(tokens=4, dtype=torch.float32)
    nothing, gradients = solve(replace(case, token_weight=torch.zeros(4)), "dense")
    assert nothing.loss == 0 and all(gradient.abs().sum() == 0 for gradient in gradients)
    one = replace(case, token_weight=torch.tensor([0, 0, 1, 0]))
    found = errors(solve(one, "dense"), one.to(torch.float64).dense(backend="reference"))
    assert max(found.values()) < 1e-5, found
    case.hidden[1, 2] = torch.nan
    dirty, _ = solve(case, "dense")
    assert dirty.loss.isnan() and dirty.per_token_N.isnan().tolist() == [False, True, False, False]


def test_without_a_gpu_or_in_float64_it_is_refused():
    with pytest.raises(UsageError, match="float64 is left to torch"):
        random_case().dense(backend="triton")
    with pytest.raises(UsageError, match="the tensors are on cpu"):
        random_case(dtype=torch.float32).dense(backend="triton")


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_the_row_kernel_compiles_for_hopper_with_wide_loads(kind):
    """Without a GPU at hand Triton still compiles for one."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selfkd.kernels import tiles

    kernel = tiles.divergence_rows.fn
    constants = {
        "KIND": KINDS.index(kind),
        "EVEN": True,
        "GRADIENT": True,
        "TILE": 2048,
        "PARTS": 16,
    }
    floats = ("student", "teacher", "scale", "figures", "parts")
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(floats, "*fp32")
    types |= {"gradient": "*bf16", "met": "*i32", "inverse_temperature": "fp32", "share": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    place = {name: (kernel.arg_names.index(name),) for name in types}
    aligned = (*floats, "gradient", "stride", "gradient_stride", "count")
    source = ASTSource(
        kernel,
        types,
        {place[name]: value for name, value in constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    meeting = ("acquire", ".cg.")  # between the programs of a row
    loads = [line for line in ptx.asm["ptx"].splitlines() if "ld.global" in line]
    loads = [line for line in loads if not any(word in line for word in meeting)]
    assert loads and sum(".v4." not in line for line in loads) == 1  # the token's weight


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_programs_that_share_a_row_agree_with_the_reference(solve, kind):
    """More rows than run at once, each long enough for all of its programs, and padded."""
    case = random_case(tokens=600, hidden=32, vocabulary=40001, dtype=torch.float32, bias=False)
    found = errors(solve(case, "dense", kind=kind), case.dense(backend="torch", kind=kind))
    assert max(found.values()) < (1e-2 if kind == "tvd" else 1e-4), found


@pytest.mark.gpu
@on_a_gpu
def test_auto_takes_it_on_a_gpu_and_memory_does_not_grow_with_tokens():
    extra = []
    for tokens in (8192, 32768):
        case = random_case(tokens, 64, 32768, dtype=torch.bfloat16, bias=False).on("cuda")
        case.dense()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        assert case.dense()[0].backend == "triton"
        gradients = 2 * (case.weight.numel() + case.hidden.numel())
        extra.append(torch.cuda.max_memory_allocated() - before - gradients)
    assert extra[0] < 1e9 and extra[1] < 1.1 * extra[0]
