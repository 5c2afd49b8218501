"""Base models to play on, each with its training prompts and its held-out prompts."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.testbed.addition import Sum, direct, draw, prompt, scratchpad, write_prompts
from tests.testbed.charmodel import train_base

by_testbed_only = pytest.mark.skipif(
    "SELFKD_TESTBED_SEEDS" not in os.environ, reason="takes minutes: run by `make testbed`"
)

Row = tuple[str, str]
"""Prompt and completion."""


@dataclass(frozen=True)
class Bed:
    """A base model, its training prompts and its held-out prompts."""

    model: Path
    prompts: Path
    heldout: Path
    runs: Path
    seed: int


WORKED = 0.4
"""Share of a base's examples that work with the scratchpad. Fewer than half: greedily it then
answers directly as often as not, and mostly wrong, but knows how to do better."""


def two_styles(sums: list[Sum], rng: np.random.Generator) -> list[Row]:
    """Sums answered in one style or the other."""
    return [(prompt(*s), (scratchpad if rng.random() < WORKED else direct)(*s)) for s in sums]


def adding(
    folder: Path,
    seed: int,
    *,
    steps: int = 600,
    train: int = 300,
    more: Callable[[list[Row], np.random.Generator], list[Row]] | None = None,
) -> Bed:
    """Three-digit sums, and a base that answers in two styles, trained unless `folder` has it.

    After 600 steps it is right one time in five, greedily two in five. `more` makes rows of
    another kind out of 32 further sums and their answers, for the base to learn as well.
    """
    rng = np.random.default_rng(seed)
    heldout = draw(100, rng, [3], set())
    trained = draw(train, rng, [3], set(heldout))
    avoid = {*heldout, *trained}

    def batch() -> list[Row]:
        rows = two_styles(draw(64, rng, [1, 2, 3, 3], avoid), rng)
        if more:
            rows += more(two_styles(draw(32, rng, [1, 2, 3, 3], avoid), rng), rng)
        return rows

    base = folder / "base"
    return Bed(
        base if base.exists() else train_base(base, batch, steps=steps, seed=seed),
        write_prompts(folder / "train.jsonl", trained),
        write_prompts(folder / "heldout.jsonl", heldout),
        folder / "runs",
        seed,
    )
