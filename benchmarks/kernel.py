"""The fused divergence against its peers on a CPU: `make bench-kernel`.

Loss and gradients at hidden size 576 and vocabulary 49152 of: this package (head trained, frozen,
frozen and shared with the teacher, and trained without what is compiled), TRL's dense
`generalized_jsd_loss`, TRL's `ChunkedDivergenceFunction`, Liger's chunked JSD (compiled; where
liger-kernel is installed), and the floor: the matrix products that any of them has to do.
Candidates take turns, so that what else the machine does falls on all alike, and ratios are medians
over the turns. Loss and gradients of this package are held against float64 at every size. Peak
memory is measured in a process of its own for each. Prints the targets with pass or miss; exits 0
either way.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from kernel_gpu import relative_errors, solve
from peers import (
    Run,
    candidates,
    make_inputs,
    ratio,
    row,
    take_turns,
    verdict,
    versions,
    widened,
)
from torch import Tensor

from selfkd.hardware import prefers_onednn
from selfkd.kernels import pages
from selfkd.kernels.chunked import CHUNK_BYTES
from selfkd.kernels.products import by_onednn

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MIB = 2**20
CLOSE = {"fp32": (1e-5, 1e-5), "bf16": (1e-3, 1e-2)}
"""How far from float64 the loss may be, and the gradients in norm."""


def clocked(run: Run) -> tuple[float, Tensor | None]:
    started = time.perf_counter()
    loss = run()
    return time.perf_counter() - started, loss


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
        if {name, "floor"} <= seconds.keys():
            lines.append(verdict(f"{name} over floor", ratio(seconds, name, "floor"), limit, "<="))
    for name, limit in faster.items():
        if {name, "ours"} <= seconds.keys():
            lines.append(verdict(f"{name} over ours", ratio(seconds, name, "ours"), limit, ">="))
    return [f"  {dtype} N={tokens} {line}" for line in lines]


def accuracy_targets(dtype: str, tokens: int, errors: tuple[float, float]) -> list[str]:
    """Lines that say pass or miss; errors: relative to float64, of the loss and the gradients."""
    held = zip(("loss", "gradients"), errors, CLOSE[dtype], strict=True)
    lines = [verdict(f"error of the {what}", e, limit, "<=", ".1e") for what, e, limit in held]
    return [f"  {dtype} N={tokens} {line}" for line in lines]


def memory_targets(
    added: dict[str, list[int]], tokens: list[int], hidden: int, vocabulary: int, dtype: str
) -> list[str]:
    """Two chunks of logits, whatever the number of tokens; and a wider limit.

    The wider one has room for the sum of a bfloat16 head's gradient in float32, and a tenth more
    for what grows with the tokens. added: of each candidate the peak in bytes at each of `tokens`.
    """
    if "ours" not in added:
        return []
    chunk = vocabulary * 4 * min(tokens[-1], CHUNK_BYTES["cpu"] // (vocabulary * 4))
    sums = vocabulary * hidden * 4 if dtype == "bf16" else 0
    limits = {
        "two chunks": 2 * chunk / MIB,
        "and the head's sum and a tenth": (2 * chunk + sums) / MIB * 1.1,
    }
    lines = []
    for count, peak in zip(tokens, added["ours"], strict=True):
        gradients = (count + vocabulary) * hidden * DTYPES[dtype].itemsize
        for name, limit in limits.items():
            line = verdict(f"MiB beyond gradients ({name})", (peak - gradients) / MIB, limit, "<=")
            lines.append(f"  {dtype} N={count} {line}")
    return lines


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
    pages.release()  # what the small call left, which this one would not have to ask for
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    print(status("VmHWM") - before)


def peaks(
    names: list[str], tokens: list[int], hidden: int, vocabulary: int, dtype: str
) -> dict[str, list[int]]:
    width = DTYPES[dtype].itemsize
    print(f"\npeak memory beyond inputs, {dtype}, N={' and '.join(map(str, tokens))}: MiB")
    for label, sizes in (
        ("(gradients)", [(n + vocabulary) * hidden * width for n in tokens]),
        ("(fp32 logits)", [n * vocabulary * 4 for n in tokens]),
    ):
        print(f"  {label:14} " + " ".join(f"{size / MIB:8.0f}" for size in sizes))
    found = {}
    for name in names:
        found[name] = []
        for count in tokens:
            sizes = map(str, (count, hidden, vocabulary))
            command = [sys.executable, __file__, "--peak", name, dtype, *sizes]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(int(done.stdout.split()[-1]))
        print(f"  {name:14} " + " ".join(f"{size / MIB:8.0f}" for size in found[name]))
    return found


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    found = versions("torch", "trl", "liger-kernel")
    return (
        f"{date.today()}, {model}, {threads} threads, load {load:.1f}, {found}, "
        f"Python {platform.python_version()}"
    )


@by_onednn(prefers_onednn())  # as in a trainer
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
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
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
            names = [name for name in runs if not name.startswith("floor")]
            exact = solve(widened(x), "jsd", "torch")
            truth = exact[0].item()
            errors = relative_errors(solve(x, "jsd", "auto"), exact)
            del exact  # as large as two heads
            seconds, losses = take_turns(runs, 1 if args.quick else args.turns, clocked)
            title = "milliseconds, ratio to the floor (median [range]), loss against"
            print(f"\n{dtype} N={count}: {title} {truth:.6f}")
            for name in runs:
                print(row(name, seconds, losses, truth), flush=True)
            lines += targets(dtype, count, seconds) + accuracy_targets(dtype, count, errors)
    if not args.no_memory:
        ends, dtype = [tokens[0], tokens[-1]], args.dtypes[0]
        added = peaks(names, ends, hidden, vocabulary, dtype)
        if not args.quick:
            lines += memory_targets(added, ends, hidden, vocabulary, dtype)
    print("\ntargets\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
