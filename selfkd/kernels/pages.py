"""Large CPU tensors in memory that is kept: touching fresh pages costs as much as the arithmetic.

A freed block waits for the next tensor of about its size. So what one call after another needs,
logits of a chunk and the gradient of a head, is cleared by the system once and not in every call.
"""

import mmap
import weakref
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

SMALL = 2**22
"""Bytes below which it is not worth it."""
STEP = 2**25
"""Blocks are multiples of so many bytes, so that chunks of about the same size share them."""
KEPT = 2**29
"""Bytes that may wait, in this process."""

_waiting: list[mmap.mmap] = []
"""Those that waited longest come first."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized tensor; its memory waits for another one when the tensor is gone."""
    count = prod(shape)
    size = count * dtype.itemsize
    if device.type != "cpu" or size < SMALL or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _waiting_block(size) or _new_block(-(-size // STEP) * STEP)
    held = memoryview(memory)  # by the tensor
    weakref.finalize(held, _keep, memory).atexit = False
    return torch.frombuffer(held, dtype=dtype, count=count).view(shape)


def release() -> None:
    """Give what waits back to the system."""
    _waiting.clear()


def _waiting_block(size: int) -> mmap.mmap | None:
    """The smallest that is large enough, and not twice as large."""
    fitting = [block for block in _waiting if size <= len(block) < 2 * max(size, STEP)]
    if not fitting:
        return None
    block = min(fitting, key=len)
    _waiting.remove(block)
    return block


def _new_block(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages serves small ones
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _keep(memory: mmap.mmap) -> None:
    _waiting.append(memory)
    while _waiting and sum(map(len, _waiting)) > KEPT:
        _waiting.pop(0)
