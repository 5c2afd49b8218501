"""The fused divergence against its peers on an NVIDIA GPU: `python benchmarks/kernel_gpu.py`.

First every kind is held against float64, and a wrong number ends it. Then loss and gradients at
8192 tokens, hidden size 4096 and vocabulary 131072 in bfloat16 of: this package (head trained,
frozen, and frozen and shared), plain torch, TRL's dense and chunked losses, Liger's chunked
(compiled) and fused (Triton) JSD, and the floor, the matrix products alone. Candidates take turns.
Prints milliseconds, TFLOP/s, peak memory beyond inputs and gradients, what the row kernel moves a
second, and the targets with pass or miss. `--roofline` prints the arithmetic alone, on any machine.
"""

import argparse
import os
import statistics
import sys
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec

import torch
from peers import (
    Inputs,
    Run,
    candidates,
    differentiate,
    make_inputs,
    ratio,
    row,
    take_turns,
    true_loss,
    verdict,
    versions,
    widened,
)
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from selfkd.kernels import KINDS, fused_linear_divergence
from selfkd.kernels.chunked import CHUNK_BYTES
from selfkd.kernels.measures import measure

GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """Tokens, hidden size and vocabulary of one problem, in bfloat16."""

    tokens: int
    hidden: int
    vocabulary: int

    @property
    def product(self) -> float:
        """Operations of one of the four matrix products."""
        return 2.0 * self.tokens * self.hidden * self.vocabulary

    @property
    def chunk(self) -> int:
        """Tokens whose float32 logits are held at once."""
        return min(self.tokens, CHUNK_BYTES["cuda"] // (4 * self.vocabulary))

    def logits(self, width: int) -> float:
        """Bytes of one model's logits, all of them, at so many bytes each."""
        return float(width * self.tokens * self.vocabulary)


def roofline(sizes: Sizes, flops: float = 790e12, bandwidth: float = 3.35e12) -> dict[str, float]:
    """Lower bounds in milliseconds on a GPU of that speed, by default an H100 SXM in bfloat16.

    The row kernel reads both models' float32 logits once from memory, writes what the gradient
    needs of a sum over the teacher's, and bfloat16 gradients. Both heads are read once a chunk, the
    gradient of the student's is read and written once for every three chunks of tokens; that and
    what products write and read of logits may hide behind their arithmetic.
    """
    head = 2.0 * sizes.vocabulary * sizes.hidden
    chunks = -(-sizes.tokens // sizes.chunk)
    groups = -(-sizes.tokens // (3 * sizes.chunk))
    figures = {
        "four products": 4 * sizes.product / flops,
        "three products, head frozen": 3 * sizes.product / flops,
        "row kernel": (3 * sizes.logits(4) + sizes.logits(2)) / bandwidth,
        "both heads, for every chunk": 2 * chunks * head / bandwidth,
        "the head's gradient, for every group": 2 * groups * head / bandwidth,
        "logits out of and gradients into products": (2 * sizes.logits(4) + 2 * sizes.logits(2))
        / bandwidth,
    }
    return {name: 1e3 * seconds for name, seconds in figures.items()}


def chunk_memory(sizes: Sizes) -> dict[str, float]:
    """Bytes held beyond inputs and gradients."""
    one = 4.0 * sizes.chunk * sizes.vocabulary
    return {
        "logits of a chunk, both models": 2 * one,
        "gradients of three chunks in bfloat16": 1.5 * one,
    }


def print_roofline(sizes: Sizes) -> None:
    print(f"N={sizes.tokens}, H={sizes.hidden}, V={sizes.vocabulary}, chunks of {sizes.chunk}")
    for name, milliseconds in roofline(sizes).items():
        print(f"  {name:42} {milliseconds:6.1f} ms")
    print(f"  {'logits of one model in float32':42} {sizes.logits(4) / GB:6.2f} GB")
    for name, size in chunk_memory(sizes).items():
        print(f"  {name:42} {size / GB:6.2f} GB")


def check(hidden: int, vocabulary: int, device: str) -> list[str]:
    """What is further from float64 than it may be, for every kind and both dtypes.

    The limits are those of short sums; of longer ones twice what torch is off in the same dtype.
    """
    wrong = []
    for dtype, limits in ((torch.bfloat16, (1e-3, 1e-2)), (torch.float32, (1e-5, 1e-5))):
        x = make_inputs(48, hidden, vocabulary, dtype, device)
        wide = widened(x)
        for kind in KINDS:
            truth = solve(wide, kind, "torch")
            loss, gradients = relative_errors(solve(x, kind, "auto"), truth)
            print(f"  {dtype} {kind:16} loss {loss:.1e}, gradients {gradients:.1e}")
            slack = 10 if kind == "tvd" else 1  # its gradient jumps where the models agree
            _, usual = relative_errors(solve(x, kind, "torch"), truth)
            if not (loss <= limits[0] and gradients <= max(slack * limits[1], 2 * usual)):
                wrong.append(f"{kind} in {dtype}")
    return wrong


def relative_errors(got: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> tuple[float, float]:
    """Of the loss, and the larger of the two gradients'."""
    loss, *gradients = (
        ((found.double() - exact).norm() / exact.norm()).item()
        for found, exact in zip(got, truth, strict=True)
    )
    return loss, max(gradients)


def solve(x: Inputs, kind: str, backend: str) -> tuple[Tensor, ...]:
    tensors = (x.hidden, x.head, x.teacher_hidden, x.teacher_head)
    got = fused_linear_divergence(*tensors, kind=kind, beta=0.5, backend=backend)
    return got.loss.detach().double(), *torch.autograd.grad(got.loss, (x.hidden, x.head))


def plain_torch(x: Inputs) -> Tensor:
    """The divergence as one would write it: all logits at once, float32 log-probabilities."""
    student = log_softmax((x.hidden @ x.head.T).float(), -1)
    with torch.no_grad():
        teacher = log_softmax((x.teacher_hidden @ x.teacher_head.T).float(), -1)
    middle = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0))
    from_student = kl_div(middle, student, reduction="batchmean", log_target=True)
    from_teacher = kl_div(middle, teacher, reduction="batchmean", log_target=True)
    return differentiate((from_student + from_teacher) / 2, x.hidden, x.head)


def gpu_candidates(x: Inputs) -> dict[str, Run]:
    found = candidates(x)
    found["torch dense"] = partial(plain_torch, x)
    if find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearJSD

        loss = LigerFusedLinearJSD()

        def fused() -> Tensor:
            got = loss(x.hidden, x.head, x.teacher_hidden, x.teacher_head, shift_labels=None)
            return differentiate(got, x.hidden, x.head)

        found["Liger fused"] = fused
    return found


def clocked(run: Run) -> tuple[float, Tensor | None]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    loss = run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, loss


def warmed(run: Run) -> tuple[float, Tensor | None]:
    """After a run that is not counted: a GPU's clocks depend on what it did just before."""
    run()
    return clocked(run)


def peak(run: Run, kept: int) -> int:
    """Bytes beyond what was there before and `kept`, those of the gradients that come back."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - kept


def gradient_bytes(name: str, sizes: Sizes) -> int:
    rows = sizes.tokens + (0 if "frozen" in name or "shared" in name else sizes.vocabulary)
    return 0 if name.startswith("floor") else 2 * rows * sizes.hidden


def operations(name: str, sizes: Sizes) -> float:
    return (3 if "frozen" in name or "shared" in name else 4) * sizes.product


def row_kernel_bandwidth(sizes: Sizes) -> float:
    """Bytes a second of the row kernel alone on one chunk, by the least it has to move: both
    models' logits read and gradients written once."""
    from selfkd.kernels.gpu import TritonEngine

    engine = TritonEngine(torch.bfloat16, torch.device("cuda"))
    shape = (sizes.chunk, engine.row_stride(sizes.vocabulary))
    student, teacher = torch.randn(2, *shape, device="cuda")
    scale = torch.ones(sizes.chunk, device="cuda")
    into = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    run = partial(engine.rows, student, teacher, scale, measure("jsd", 0.5, 1.0), into)
    run()
    times = [clocked(lambda: run().loss_C)[0] for _ in range(20)]
    return student.numel() * (2 * 4 + 2) / statistics.median(times)


def targets(seconds: dict[str, list[float]], extra: dict[str, int]) -> list[str]:
    """Lines that say pass or miss."""
    lines = [verdict("ours over floor", ratio(seconds, "ours", "floor"), 1.25, "<=")]
    for name in ("Liger", "Liger fused"):
        if name in seconds:
            lines.append(verdict(f"{name} over ours", ratio(seconds, name, "ours"), 1.3, ">="))
    for name, head in (("ours frozen", "frozen"), ("ours", "trained")):
        lines.append(verdict(f"GB beyond gradients, head {head}", extra[name] / GB, 1.0, "<="))
    return [f"  {line}" for line in lines]


def compare(sizes: Sizes, turns: int, without: list[str]) -> None:
    x = make_inputs(sizes.tokens, sizes.hidden, sizes.vocabulary, torch.bfloat16, "cuda")
    runs = {name: run for name, run in gpu_candidates(x).items() if name not in without}
    truth = true_loss(x)
    torch.cuda.empty_cache()
    seconds, losses = take_turns(runs, turns, warmed)
    extra = {name: peak(run, gradient_bytes(name, sizes)) for name, run in runs.items()}
    print(f"\nmilliseconds, ratio to the floor (median [range]), loss against {truth:.6f}")
    for name in runs:
        print(row(name, seconds, losses, truth))
    print("\nTFLOP/s by the products needed, GB at the peak beyond inputs and gradients")
    for name, times in seconds.items():
        speed = operations(name, sizes) / statistics.median(times) / 1e12
        print(f"  {name:14} {speed:8.0f}  {extra[name] / GB:8.2f}")
    print(f"\nrow kernel: {row_kernel_bandwidth(sizes) / 1e12:.2f} TB/s")
    print("\ntargets\n" + "\n".join(targets(seconds, extra)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--without", nargs="*", default=[], help="candidates to leave out")
    parser.add_argument("--roofline", action="store_true", help="arithmetic alone; needs no GPU")
    args = parser.parse_args()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    sizes = Sizes(args.tokens, args.hidden, args.vocabulary)
    if args.roofline:
        print_roofline(sizes)
        return
    if not torch.cuda.is_available():
        sys.exit(
            "kernel_gpu.py needs an NVIDIA GPU that torch can use, and found none; "
            "--roofline prints the arithmetic, benchmarks/kernel.py measures on a CPU"
        )
    found = versions("torch", "triton", "trl", "liger-kernel")
    print(f"{date.today()}, {torch.cuda.get_device_name()}, {found}")
    print("\nrelative errors against float64")
    wrong = check(args.hidden, args.vocabulary, "cuda")
    if wrong:
        sys.exit(f"too far from float64: {', '.join(wrong)}")
    compare(sizes, args.turns, args.without)


if __name__ == "__main__":
    main()
