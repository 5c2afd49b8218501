"""Which engine runs, and a word about it the first time."""

import logging
from functools import cache

import torch

from selfkd.errors import UsageError
from selfkd.kernels.engine import Engine, TorchEngine

BACKENDS = ("auto", "reference", "torch", "cpu", "triton")
log = logging.getLogger("selfkd.kernels")


def choose_engine(backend: str, multiply: torch.dtype, device: torch.device) -> Engine:
    """The engine for a backend's name; auto takes the fastest that works here.

    Raises UsageError for an unknown name, and for one that cannot work here.
    """
    if backend not in BACKENDS:
        raise UsageError(
            f"backend {backend!r} is unknown", remedy=f"Use one of {', '.join(BACKENDS)}."
        )
    engine = TorchEngine(multiply, device)
    _say(engine.name, str(multiply), device.type)
    return engine


@cache
def _say(name: str, multiply: str, device: str) -> None:
    log.info("linear divergence on %s in %s: %s", device, multiply, name)
