"""Large CPU tensors on large pages: touching fresh 4 KiB pages costs as much as the arithmetic."""

import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

SMALL = 2**22
"""Bytes below which it is not worth it."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized tensor; its memory goes back when the tensor does."""
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < SMALL or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages serves small ones
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
