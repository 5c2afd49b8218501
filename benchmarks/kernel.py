"""The fused divergence against its peers on a CPU: `python benchmarks/kernel.py [--quick]`.

Loss and gradients at hidden size 576 and vocabulary 49152 of: this package (head trained, frozen,
and frozen and shared with the teacher), TRL's dense `generalized_jsd_loss`, TRL's
`ChunkedDivergenceFunction`, Liger's chunked JSD (compiled; where liger-kernel is installed), and
the floor: the matrix products that any of them has to do. Candidates take turns, so that what
else the machine does falls on all alike, and ratios are medians over the turns. Peak memory is
measured in a process of its own for each. Prints the targets with pass or miss; exits 0 either way.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from selfkd.kernels import fused_linear_divergence

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OURS = ("ours", "ours frozen", "ours shared")
PEERS = ("TRL dense", "TRL chunked", "Liger")
MIB = 2**20


@dataclass
class Inputs:
    """One problem: student and teacher hidden states and heads."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor


def make_inputs(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> Inputs:
    """Two models that agree about as much as a policy and its teacher: jsd near 0.01."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=source) * scale

    states, head = normal(tokens, hidden), normal(vocabulary, hidden, scale=0.08)
    taught, other = states + normal(tokens, hidden, scale=0.1), head
    other = head + normal(vocabulary, hidden, scale=0.008)
    made = [tensor.to(dtype) for tensor in (states, head, taught, other)]
    return Inputs(made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3])


def candidates(x: Inputs) -> dict[str, Callable[[], Tensor | None]]:
    """Name to a function that computes loss and gradients once."""
    frozen = x.head.detach()

    def ours(head: Tensor, teacher_head: Tensor) -> Tensor:
        got = fused_linear_divergence(x.hidden, head, x.teacher_hidden, teacher_head)
        return differentiate(got.loss, x.hidden, head)

    def floor(trained: bool) -> None:
        with torch.no_grad():
            logits = x.hidden @ x.head.T
            _ = x.teacher_hidden @ x.teacher_head.T
            _ = logits @ x.head
            if trained:
                _ = logits.T @ x.hidden

    def dense() -> Tensor:
        from trl.experimental.gkd import GKDTrainer

        student, teacher = x.hidden @ x.head.T, x.teacher_hidden @ x.teacher_head.T
        labels = torch.zeros(1, len(student), dtype=torch.long)
        loss = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels)
        return differentiate(loss, x.hidden, x.head)

    def chunked() -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        per_token, _ = ChunkedDivergenceFunction.apply(
            x.hidden, x.head, None, x.teacher_hidden, x.teacher_head, None, 0.5
        )
        return differentiate(per_token.mean(), x.hidden, x.head)

    found: dict[str, Callable[[], Tensor | None]] = {
        "floor": lambda: floor(True),
        "floor frozen": lambda: floor(False),
        "ours": lambda: ours(x.head, x.teacher_head),
        "ours frozen": lambda: ours(frozen, x.teacher_head),
        "ours shared": lambda: ours(frozen, frozen),
        "TRL dense": dense,
        "TRL chunked": chunked,
    }
    if find_spec("liger_kernel"):
        found["Liger"] = liger(x)
    return found


def liger(x: Inputs) -> Callable[[], Tensor]:
    from liger_kernel.chunked_loss.jsd_loss import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearJSDLoss,
    )

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=True)
    labels = torch.zeros(len(x.hidden), dtype=torch.long)

    def run() -> Tensor:
        got = loss(x.hidden, x.head, x.teacher_hidden, x.teacher_head, labels)
        assert isinstance(got, Tensor)
        return differentiate(got, x.hidden, x.head)

    return run


def differentiate(loss: Tensor, *leaves: Tensor) -> Tensor:
    torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return loss.detach()


def true_loss(x: Inputs) -> float:
    wide = [tensor.detach().double() for tensor in (x.hidden, x.head)]
    wide += [x.teacher_hidden.double(), x.teacher_head.double()]
    with torch.no_grad():
        return fused_linear_divergence(*wide, backend="torch").loss.item()


def take_turns(
    runs: dict[str, Callable[[], Tensor | None]], turns: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each turn, and the loss, of each candidate; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses = {}
    for turn in range(turns + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            loss = run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
            if loss is not None:
                losses[name] = loss.item()
    return seconds, losses


def report(label: str, seconds: dict[str, list[float]], losses: dict[str, float], truth: float):
    print(f"\n{label}: milliseconds, ratio to the floor (median [range]), loss against {truth:.6f}")
    for name, times in seconds.items():
        over = sorted(t / f for t, f in zip(times, seconds["floor"], strict=True))
        spread = f"{statistics.median(over):5.2f} [{over[0]:.2f}-{over[-1]:.2f}]"
        error = f"{losses[name]:.6f} ({losses[name] / truth - 1:+.1e})" if name in losses else ""
        if name == "ours shared":
            error = ""  # another teacher
        print(f"  {name:14} {1e3 * statistics.median(times):8.0f}  {spread:22} {error}")


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def targets(dtype: str, tokens: int, seconds: dict[str, list[float]]) -> list[str]:
    """Lines that say pass or miss; none for sizes without targets."""
    if tokens < 2048:
        return []
    narrow = dtype == "bf16"
    at_most = {"ours": 1.30 if narrow else 1.0, "ours frozen": 1.05 if narrow else 0.8}
    faster = {"TRL dense": 5.0 if tokens >= 4096 else 3.5, "TRL chunked": 6.0, "Liger": 1.3}
    if not narrow:
        faster = {"TRL chunked": 3.0, "Liger": 1.15}
    lines = []
    for name, limit in at_most.items():
        lines.append(verdict(f"{name} over floor", ratio(seconds, name, "floor"), limit, "<="))
    for name, limit in faster.items():
        if name in seconds:
            lines.append(verdict(f"{name} over ours", ratio(seconds, name, "ours"), limit, ">="))
    return [f"  {dtype} N={tokens} {line}" for line in lines]


def verdict(what: str, value: float, limit: float, sense: str) -> str:
    good = value <= limit if sense == "<=" else value >= limit
    return f"{what} {value:.2f}, target {sense} {limit:.2f}: {'pass' if good else 'MISS'}"


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def print_peak(name: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Resident memory that one call adds at its peak, after a small one that loads libraries."""
    candidates(make_inputs(8, *sizes[1:], dtype))[name]()
    run = candidates(make_inputs(*sizes, dtype))[name]
    if name == "Liger":
        run()  # compiles
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    print(status("VmHWM") - before)


def peaks(names: list[str], sizes: tuple[int, int, int], dtype: str) -> None:
    tokens, hidden, vocabulary = sizes
    width = DTYPES[dtype].itemsize
    gradients = (tokens + vocabulary) * hidden * width
    print(
        f"\npeak memory beyond inputs, {dtype} N={tokens}: MiB (gradients {gradients / MIB:.0f}, "
        f"one model's logits in fp32 {tokens * vocabulary * 4 / MIB:.0f})"
    )
    for name in names:
        command = [sys.executable, __file__, "--peak", name, dtype, *map(str, sizes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {name:14} {int(done.stdout.split()[-1]) / MIB:8.0f}")


def machine() -> str:
    names = ("torch", "trl", "liger-kernel")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    return f"{date.today()}, {model}, {threads} threads, load {load:.1f}, " + ", ".join(
        [*found, f"Python {platform.python_version()}"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check the script")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="*", default=[512, 2048, 4096])
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--without", nargs="*", default=[], help="candidates to leave out")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        name, dtype, *sizes = args.peak
        print_peak(name, (int(sizes[0]), int(sizes[1]), int(sizes[2])), DTYPES[dtype])
        return
    hidden, vocabulary = (64, 512) if args.quick else (576, 49152)
    tokens = [16, 64] if args.quick else args.tokens
    print(machine())
    lines, names = [], []
    for dtype in args.dtypes:
        for count in tokens:
            x = make_inputs(count, hidden, vocabulary, DTYPES[dtype])
            runs = {n: run for n, run in candidates(x).items() if n not in args.without}
            seconds, losses = take_turns(runs, 1 if args.quick else args.turns)
            report(f"{dtype} N={count}", seconds, losses, true_loss(x))
            lines += targets(dtype, count, seconds)
            names = [name for name in runs if not name.startswith("floor")]
    if not args.no_memory:
        for count in (tokens[0], tokens[-1]):
            peaks(names, (count, hidden, vocabulary), args.dtypes[0])
    print("\ntargets\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
