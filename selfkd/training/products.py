"""Who multiplies matrices of float32 on a CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from selfkd.hardware import prefers_onednn


@contextlib.contextmanager
def suited_products() -> Iterator[None]:
    """Have torch take oneDNN instead of MKL where that is faster.

    Torch does so only where oneDNN may round factors to bfloat16. It does that with AMX alone:
    without it products stay in float32, and differ from MKL's in the order of their sums.
    benchmarks/products.py prints speed and error of both.
    """
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision
    if prefers_onednn():
        mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        mkldnn.matmul.fp32_precision = before
