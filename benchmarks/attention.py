"""Attention of a training step on CPU: plain products and a softmax against PyTorch's fused kernel.

Forward and backward of a layer of SmolLM2-135M (9 heads, 3 for keys and values, of size 64) on rows
of half to all of a length, as the loss sees them, with a trainer's settings of the C library.
`selfkd/training/attention.py` chooses by it.

    python benchmarks/attention.py
"""

import os
import sys
import time

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from selfkd.cluster import LARGE_BLOCKS
from selfkd.hardware import prefers_onednn
from selfkd.kernels.products import by_onednn

LENGTHS = (32, 64, 128, 256, 384, 512)
ROWS, HEADS, KEYS, SIZE = 16, 9, 3, 64
TURNS = 7


class Layer(torch.nn.Module):
    """What both ask of the layer that they are called for."""

    num_key_value_groups = HEADS // KEYS
    is_causal = True


def inputs(length: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and which keys a query may see, (B, 1, T, T)."""
    torch.manual_seed(0)
    shapes = [(ROWS, heads, length, SIZE) for heads in (HEADS, KEYS, KEYS)]
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    filled = torch.arange(length) < torch.randint(length // 2, length + 1, (ROWS, 1))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return tensors, causal & filled[:, None, None, :]


def seconds(attention: object, tensors: list[Tensor], mask: Tensor) -> float:
    """Of one forward and backward pass."""
    started = time.perf_counter()
    out = attention(Layer(), *tensors, mask, scaling=SIZE**-0.5, dropout=0.0)[0]  # type: ignore
    out.backward(torch.ones_like(out))
    return time.perf_counter() - started


@by_onednn(prefers_onednn())  # as in a trainer
def main() -> None:
    """Print a table; each figure is the best of turns in which both took part."""
    if not LARGE_BLOCKS.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **LARGE_BLOCKS})
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ms a layer")
    print(f"{'dtype':>9} {'tokens':>6} {'fused':>7} {'plain':>7} {'ratio':>6}")
    for dtype in (torch.bfloat16, torch.float32):
        for length in LENGTHS:
            tensors, mask = inputs(length, dtype)
            hidden = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            turns = [
                (
                    seconds(sdpa_attention_forward, tensors, mask),
                    seconds(eager_attention_forward, tensors, hidden),
                )
                for _ in range(TURNS)
            ]
            fused, plain = (1000 * min(column) for column in zip(*turns, strict=True))
            name = str(dtype).removeprefix("torch.")
            print(f"{name:>9} {length:6} {fused:7.2f} {plain:7.2f} {fused / plain:6.2f}")


if __name__ == "__main__":
    main()
