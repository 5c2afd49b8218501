"""bfloat16 weights that keep what was learnt: rounded at random, with the odds of the expectation.

A round of training moves most weights by less than half the distance to the next bfloat16 number.
To the nearest number they all round to where they came from, and most of what was learnt is gone:
from a stored policy, and no less from a forward pass in bfloat16, which then computes gradients at
the old weights, step after step in the same direction, until the policy has overshot. So both see
weights that are rounded up or down at random, which keeps the expectation (stochastic rounding,
Gupta et al. 2015, arXiv:1502.02551, section 3). `benchmarks/rounding.py` prints what it is worth.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from selfkd.training.parameters import show, trained, values

TABLE = 2**20
"""Numbers of a table of noise. Weights so far apart share theirs, which costs nothing: it is the
low bits that decide with it, and those they do not share."""


def round_to_bfloat16(model: torch.nn.Module, seed: int) -> None:
    """Replace every float32 parameter by a neighbouring bfloat16 number, stored as float32."""
    weights = [p.data for p in model.parameters()]
    _round(weights, seed, weights)


class Rounding:
    """Rounds the same tensors over and over, with fresh noise, into memory of its own."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._buffers: list[Tensor] = []

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Rounded copies, which are overwritten by the next call."""
        self._buffers = self._buffers or [torch.empty_like(t) for t in tensors]
        self._seed += 1
        _round(tensors, self._seed, self._buffers)
        return self._buffers


class RoundedSteps(TrainerCallback):
    """Gradients at rounded weights; the optimiser goes on with the exact ones."""

    def __init__(self, model: torch.nn.Module, seed: int) -> None:
        self._parameters = trained(model)
        self._exact: list[Tensor] = []
        self._rounding = Rounding(seed)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._exact = values(self._parameters)
        show(self._parameters, self._rounding(self._exact))

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        show(self._parameters, self._exact)


@torch.no_grad()
def _round(exact: Sequence[Tensor], seed: int, into: Sequence[Tensor]) -> None:
    noise = _noise(seed)
    for tensor, out in zip(exact, into, strict=True):
        noise = noise.to(tensor.device)
        # The upper half of a float32 is the bfloat16 nearer to zero; the lower half, the rest of
        # it, is the chance that noise carries over into the upper half.
        for bits, rounded in zip(_bits(tensor), _bits(out), strict=True):
            torch.add(bits, noise[: len(bits)], out=rounded)
            rounded.add_(1 << 15).bitwise_and_(-(1 << 16))


def _noise(seed: int) -> Tensor:
    """Uniform int16, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.empty(TABLE // 4, dtype=torch.int64)
    return table.random_(-(2**63), None, generator=generator).view(torch.int16)


def _bits(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.view(-1).view(torch.int32).split(TABLE)
