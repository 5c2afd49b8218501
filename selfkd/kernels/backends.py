"""Which engine runs, and a word about it the first time."""

import logging
from functools import cache

import torch

from selfkd.errors import UsageError
from selfkd.kernels.build import Unavailable
from selfkd.kernels.cpu import CpuEngine
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
    if backend == "cpu" or (backend == "auto" and device.type == "cpu"):
        engine = _compiled(multiply, device, asked=backend == "cpu")
    else:
        engine = TorchEngine(multiply, device)
    _say(engine.name, str(multiply), device.type)
    return engine


def _compiled(multiply: torch.dtype, device: torch.device, *, asked: bool) -> Engine:
    try:
        if device.type != "cpu":
            raise Unavailable(f"the tensors are on {device}")
        return CpuEngine(multiply)
    except Unavailable as reason:
        if asked:
            raise UsageError(
                f"backend 'cpu' cannot run: {reason}", remedy="Use backend='auto'."
            ) from reason
        if multiply != torch.float64:
            _warn(str(reason))
        return TorchEngine(multiply, device)


@cache
def _warn(reason: str) -> None:
    log.warning("linear divergence runs in torch, several times slower than compiled: %s", reason)


@cache
def _say(name: str, multiply: str, device: str) -> None:
    log.info("linear divergence on %s in %s: %s", device, multiply, name)
