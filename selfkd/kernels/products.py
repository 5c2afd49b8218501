"""Products of float32 matrices on a CPU by oneDNN, where torch by itself takes MKL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def by_onednn(wanted: bool) -> Iterator[None]:
    """Have oneDNN make them if that is wanted.

    Torch has it do so only where it may round factors to bfloat16. It does that on processors with
    AMX alone: on others products stay in float32, and differ from MKL's in the order of their sums.
    """
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    if wanted:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
