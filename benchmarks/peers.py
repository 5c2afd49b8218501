"""What benchmarks/kernel.py and kernel_gpu.py compare: inputs, candidates, turns and verdicts."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from selfkd.kernels import fused_linear_divergence

Run = Callable[[], Tensor | None]
"""Computes loss and gradients once; the floor has no loss."""


@dataclass
class Inputs:
    """One problem: student and teacher hidden states and heads."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor


def make_inputs(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: str = "cpu"
) -> Inputs:
    """Two models that agree about as much as a policy and its teacher: jsd near 0.01."""
    source = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=source, device=device).mul_(scale)

    sharpness = 1.92 / hidden**0.5  # of the logits, whatever the size
    states, head = normal(tokens, hidden), normal(vocabulary, hidden, scale=sharpness)
    taught = states + normal(tokens, hidden, scale=0.1)
    other = head + normal(vocabulary, hidden, scale=sharpness / 10)
    made = [tensor.to(dtype) for tensor in (states, head, taught, other)]
    return Inputs(made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3])


def widened(x: Inputs) -> Inputs:
    hidden, head = (tensor.detach().double().requires_grad_() for tensor in (x.hidden, x.head))
    return Inputs(hidden, head, x.teacher_hidden.double(), x.teacher_head.double())


def true_loss(x: Inputs) -> float:
    wide = widened(x)
    tensors = (wide.hidden, wide.head, wide.teacher_hidden, wide.teacher_head)
    with torch.no_grad():
        return fused_linear_divergence(*tensors, backend="torch").loss.item()


def candidates(x: Inputs) -> dict[str, Run]:
    frozen = x.head.detach()
    found: dict[str, Run] = {
        "floor": partial(floor, x, trained=True),
        "floor frozen": partial(floor, x, trained=False),
        "ours": partial(ours, x, x.head, x.teacher_head),
        "ours frozen": partial(ours, x, frozen, x.teacher_head),
        "ours shared": partial(ours, x, frozen, frozen),
        "ours in torch": partial(ours, x, x.head, x.teacher_head, backend="torch"),
        "TRL dense": partial(dense, x),
        "TRL chunked": partial(chunked, x),
    }
    if find_spec("liger_kernel"):
        found["Liger"] = liger(x)
    return found


def floor(x: Inputs, *, trained: bool) -> None:
    """The matrix products that any of them has to do, logits and gradients in the inputs' dtype."""
    with torch.no_grad():
        logits = x.hidden @ x.head.T
        _ = x.teacher_hidden @ x.teacher_head.T
        _ = logits @ x.head
        if trained:
            _ = logits.T @ x.hidden


def ours(x: Inputs, head: Tensor, teacher_head: Tensor, backend: str = "auto") -> Tensor:
    teacher = x.teacher_hidden, teacher_head
    got = fused_linear_divergence(x.hidden, head, *teacher, backend=backend)
    return differentiate(got.loss, x.hidden, head)


def dense(x: Inputs) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = x.hidden @ x.head.T, x.teacher_hidden @ x.teacher_head.T
    labels = torch.zeros(1, len(student), dtype=torch.long, device=student.device)
    loss = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels)
    return differentiate(loss, x.hidden, x.head)


def chunked(x: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    per_token, _ = ChunkedDivergenceFunction.apply(
        x.hidden, x.head, None, x.teacher_hidden, x.teacher_head, None, 0.5
    )
    return differentiate(per_token.mean(), x.hidden, x.head)


def liger(x: Inputs) -> Run:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=True)
    labels = torch.zeros(len(x.hidden), dtype=torch.long, device=x.hidden.device)

    def run() -> Tensor:
        got = loss(x.hidden, x.head, x.teacher_hidden, x.teacher_head, labels)
        assert isinstance(got, Tensor)
        return differentiate(got, x.hidden, x.head)

    return run


def differentiate(loss: Tensor, *leaves: Tensor) -> Tensor:
    torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return loss.detach()


def take_turns(
    runs: dict[str, Run], turns: int, seconds: Callable[[Run], tuple[float, Tensor | None]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each turn, and the loss, of each candidate; a first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    losses = {}
    for turn in range(turns + 1):
        for name, run in runs.items():
            spent, loss = seconds(run)
            if turn:
                taken[name].append(spent)
            if loss is not None:
                losses[name] = loss.item()
    return taken, losses


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Of two candidates, turn by turn; the median, as a turn falls on whatever else is running."""
    pairs = zip(seconds[over], seconds[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def row(name: str, seconds: dict[str, list[float]], losses: dict[str, float], truth: float) -> str:
    """Milliseconds, ratio to the floor with its range, and the loss's relative error."""
    over = sorted(t / f for t, f in zip(seconds[name], seconds["floor"], strict=True))
    spread = f"{ratio(seconds, name, 'floor'):5.2f} [{over[0]:.2f}-{over[-1]:.2f}]"
    error = ""
    if name in losses and name != "ours shared":  # that one has another teacher
        error = f"{losses[name]:.6f} ({losses[name] / truth - 1:+.1e})"
    return f"  {name:14} {1e3 * statistics.median(seconds[name]):8.1f}  {spread:22} {error}"


def verdict(what: str, value: float, limit: float, sense: str, form: str = ".2f") -> str:
    good = value <= limit if sense == "<=" else value >= limit
    word = "pass" if good else "MISS"
    return f"{what} {value:{form}}, target {sense} {limit:{form}}: {word}"


def versions(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)
