"""Rounds trained weights to bfloat16 without undoing what was learnt.

A round of training moves most weights by less than half the distance to the next bfloat16 number,
so rounding to the nearest gives the old weight back and with it most of the old loss. Rounding up
or down at random, with the odds that keep the expectation, keeps the loss (`benchmarks/rounding.py`
prints the comparison). A policy stored so is exactly what a bfloat16 sampler holds.
"""

import torch


@torch.no_grad()
def round_to_bfloat16(model: torch.nn.Module, seed: int) -> None:
    """Replace every float32 parameter by a neighbouring bfloat16 number, still stored as float32.

    Stochastic rounding: x goes to the neighbour away from zero with a probability of its distance
    from the other, in units of their gap (Gupta et al. 2015, arXiv:1502.02551, section 3).
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        # The upper half of a float32 is the bfloat16 nearer to zero; the lower half, the rest.
        bits = parameter.data.view(torch.int32)
        noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, generator=generator)
        bits.add_(noise.to(bits.device)).bitwise_and_(-(1 << 16))
