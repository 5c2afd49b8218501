"""Products in float32 on CPU: MKL, which torch takes by itself, against oneDNN.

Of the shapes that a forward and a backward pass of SmolLM2-135M have; `error` is the largest one in
parts of the mean size of the product's entries. `selfkd/training/products.py` chooses by it.

    python benchmarks/products.py
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from selfkd.hardware import prefers_onednn

mkldnn: Any = torch.backends.mkldnn

SHAPES = {
    "up": (234, 576, 1536),
    "down": (234, 1536, 576),
    "head": (145, 576, 49152),
    "gradient of up": (1536, 234, 576),
    "a few rows": (4, 576, 1536),
}
"""(M, K, N) of a product of (M, K) and (K, N)."""
TURNS, SECONDS = 5, 0.2


def rate(product: Callable[[], Tensor], flops: int) -> float:
    """GFLOP a second, over `SECONDS`."""
    started, done = time.perf_counter(), 0
    while (took := time.perf_counter() - started) < SECONDS:
        product()
        done += 1
    return done * flops / took / 1e9


def main() -> None:
    """Print a table; each rate is the best of turns in which both took part."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, GFLOP/s")
    print(f"a trainer takes {'oneDNN' if prefers_onednn() else 'MKL'} on this processor")
    print(f"{'product':>15} {'MKL':>7} {'oneDNN':>7} {'ratio':>6} {'MKL error':>10} {'oneDNN':>8}")
    torch.manual_seed(0)
    for name, (m, k, n) in SHAPES.items():
        a, b = torch.randn(m, k), torch.randn(n, k).T
        exact = a.double() @ b.double()
        rates, errors = ([0.0, 0.0] for _ in range(2))
        for _ in range(TURNS):
            for i, precision in enumerate(("ieee", "bf16")):
                mkldnn.matmul.fp32_precision = precision
                rates[i] = max(rates[i], rate(lambda a=a, b=b: a @ b, 2 * m * k * n))
                errors[i] = float((a @ b - exact).abs().max() / exact.abs().mean())
        ratio = rates[1] / rates[0]
        print(f"{name:>15} {rates[0]:7.0f} {rates[1]:7.0f} {ratio:6.2f}", end="")
        print(f" {errors[0]:10.1e} {errors[1]:8.1e}")


if __name__ == "__main__":
    main()
