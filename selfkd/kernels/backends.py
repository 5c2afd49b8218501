"""Which engine runs, and a word about it the first time."""

import logging
from functools import cache

import torch

from selfkd.errors import UsageError
from selfkd.kernels.build import Unavailable
from selfkd.kernels.cpu import cpu_engine
from selfkd.kernels.engine import Engine, TorchEngine

BACKENDS = ("auto", "reference", "torch", "cpu", "triton")
log = logging.getLogger("selfkd.kernels")


def choose_engine(backend: str, multiply: torch.dtype, device: torch.device) -> Engine:
    """The engine for a backend's name.

    auto takes triton on a GPU and cpu (compiled C++) on a CPU; where that cannot run, and for
    float64, torch. What runs is logged once; a fallback is a warning.
    Raises UsageError for an unknown name, and for one that cannot work here.
    """
    if backend not in BACKENDS:
        raise UsageError(
            f"backend {backend!r} is unknown", remedy=f"Use one of {', '.join(BACKENDS)}."
        )
    fastest = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "torch")
    if multiply == torch.float64:
        fastest = "torch"
    name = fastest if backend == "auto" else backend
    try:
        engine = _engine(name, multiply, device)
    except Unavailable as reason:
        if backend != "auto":
            raise UsageError(
                f"backend {backend!r} cannot run: {reason}", remedy="Use backend='auto'."
            ) from reason
        _warn(str(reason))
        engine = TorchEngine(multiply, device)
    _say(engine.name, str(multiply), device.type)
    return engine


def _engine(name: str, multiply: torch.dtype, device: torch.device) -> Engine:
    if name == "torch":
        return TorchEngine(multiply, device)
    if name == "cpu":
        return cpu_engine(multiply, device)
    try:
        from selfkd.kernels.gpu import TritonEngine
    except ImportError as error:
        raise Unavailable("Triton is not installed") from error
    return TritonEngine(multiply, device)


@cache
def _warn(reason: str) -> None:
    log.warning("linear divergence runs in torch, several times slower: %s", reason)


@cache
def _say(name: str, multiply: str, device: str) -> None:
    log.info("linear divergence on %s in %s: %s", device, multiply, name)
