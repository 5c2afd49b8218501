"""Language models that teach themselves: sample, judge, keep, train, round by round.

The names below are the public API. They are imported on first use, so `import selfkd` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfkd.config import LoopOptions
    from selfkd.distillation import GKD
    from selfkd.judging import JudgeOptions
    from selfkd.objectives import DPO, KTO, SFT, Mixture
    from selfkd.pairs import (
        all_above,
        best_worst,
        given_own,
        k_zip,
        length_controlled,
        right_wrong,
    )
    from selfkd.plugins import judge, loop
    from selfkd.records import Prompt, Sample, Verdict
    from selfkd.round import Round
    from selfkd.rules import (
        above,
        at_most,
        balanced,
        below,
        correct,
        everything,
        finished,
        top,
        unique,
    )
    from selfkd.run import Run
    from selfkd.segments import Segment
    from selfkd.tables import Pairs, Samples, Scored
    from selfkd.views import affix, context, fewshot, from_columns, hint, plain, principles, system
    from selfkd.weights import by_advantage, by_reward, by_shortfall

    __version__: str

__all__ = [
    "DPO",
    "GKD",
    "KTO",
    "SFT",
    "JudgeOptions",
    "LoopOptions",
    "Mixture",
    "Pairs",
    "Prompt",
    "Round",
    "Run",
    "Sample",
    "Samples",
    "Scored",
    "Segment",
    "Verdict",
    "__version__",
    "above",
    "affix",
    "all_above",
    "at_most",
    "balanced",
    "below",
    "best_worst",
    "by_advantage",
    "by_reward",
    "by_shortfall",
    "context",
    "correct",
    "everything",
    "fewshot",
    "finished",
    "from_columns",
    "given_own",
    "hint",
    "judge",
    "k_zip",
    "length_controlled",
    "loop",
    "plain",
    "principles",
    "right_wrong",
    "system",
    "top",
    "unique",
]

_HOMES = {
    "selfkd.config": ("LoopOptions",),
    "selfkd.distillation": ("GKD",),
    "selfkd.judging": ("JudgeOptions",),
    "selfkd.objectives": ("DPO", "KTO", "SFT", "Mixture"),
    "selfkd.pairs": (
        "all_above",
        "best_worst",
        "given_own",
        "k_zip",
        "length_controlled",
        "right_wrong",
    ),
    "selfkd.plugins": ("judge", "loop"),
    "selfkd.records": ("Prompt", "Sample", "Verdict"),
    "selfkd.round": ("Round",),
    "selfkd.rules": (
        "above",
        "at_most",
        "balanced",
        "below",
        "correct",
        "everything",
        "finished",
        "top",
        "unique",
    ),
    "selfkd.run": ("Run",),
    "selfkd.segments": ("Segment",),
    "selfkd.tables": ("Pairs", "Samples", "Scored"),
    "selfkd.views": (
        "affix",
        "context",
        "fewshot",
        "from_columns",
        "hint",
        "plain",
        "principles",
        "system",
    ),
    "selfkd.weights": ("by_advantage", "by_reward", "by_shortfall"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'selfkd' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("selfkd")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
