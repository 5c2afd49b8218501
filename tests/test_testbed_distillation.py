"""Distillation really teaches: from another model, and from oneself shown the answer.

Minutes in all, so only `make testbed` runs these (SELFKD_TESTBED_SEEDS=0,1,2).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.testbed.addition import draw, hinted, prompt, scratchpad
from tests.testbed.beds import Bed, Row, adding, by_testbed_only
from tests.testbed.charmodel import train_base
from tests.testbed.play import play

pytestmark = [pytest.mark.testbed, by_testbed_only]

TRAIN = {"learning_rate": 3e-4, "batch_size": 32, "epochs": 1, "dtype": "float32"}


def learn(bed: Bed, loop: str, **settings: Any) -> list[dict[str, Any]]:
    """The round rows of a loop, 300 prompts a round, the gate off."""
    plain: dict[str, Any] = {"rounds": 2, "seed": bed.seed, "train": TRAIN, "gate": {"mode": "off"}}
    return play(bed.runs, loop, bed.model, bed.prompts, bed.heldout, **plain | settings)


@pytest.fixture(scope="module")
def teacher(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always works with a scratchpad, trained for longer than the base."""
    rng = np.random.default_rng(bed.seed + 100)

    def batch() -> list[Row]:
        return [(prompt(*s), scratchpad(*s)) for s in draw(64, rng, [1, 2, 3, 3], set())]

    folder = tmp_path_factory.mktemp(f"teacher{bed.seed}")
    return train_base(folder / "model", batch, steps=1000, seed=bed.seed)


@pytest.mark.parametrize(
    ("loop", "options"),
    [
        ("gkd", {"kind": "jsd", "on_policy_fraction": 1.0, "steps_per_sync": 5}),
        ("gkd", {"kind": "forward_kl", "on_policy_fraction": 0.0}),
        ("minillm", {"teacher_share": 0.2, "steps_per_sync": 5}),
    ],
)
def test_a_better_model_teaches(bed: Bed, teacher: Path, loop: str, options: dict) -> None:
    rows = learn(bed, loop, teacher=str(teacher), samples_per_prompt=2, **options)
    assert rows[-1]["heldout_reward"] >= rows[0]["heldout_reward"] + 0.1
    # Taught on the teacher's samples only, a student has none of its own before the last round.
    own = [row["reward_mean"] for row in rows if row["reward_mean"] is not None]
    assert own[-1] >= (own[0] + 0.2 if len(own) > 1 else 0.6)


@pytest.fixture(scope="module")
def shown_bed(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A base that adds in two styles, and works with care where it is shown the answer."""

    def with_answers(rows: list[Row], rng: np.random.Generator) -> list[Row]:
        return [(hinted(*s), scratchpad(*s)) for s in draw(len(rows), rng, [1, 2, 3, 3], set())]

    folder = tmp_path_factory.mktemp(f"shown{bed.seed}")
    return adding(folder, bed.seed, more=with_answers)


@pytest.mark.parametrize("below", [None, 1.0])
def test_oneself_shown_the_answer_teaches(shown_bed: Bed, below: float | None) -> None:
    rows = learn(
        shown_bed, "opsd", context="[{answer}]", samples_per_prompt=2, steps_per_sync=5,
        below=below, teacher_prompts=100,
    )  # fmt: skip
    told = rows[0]["extra"]["teacher"]["reward_mean"]
    assert told >= rows[0]["reward_mean"] + 0.2
    assert rows[-1]["reward_mean"] >= rows[0]["reward_mean"] + 0.1
    assert rows[-1]["heldout_reward"] >= rows[0]["heldout_reward"]


def test_demonstrations_teach_by_way_of_the_average(shown_bed: Bed) -> None:
    rows = learn(
        shown_bed, "sdft", context="[{answer}]", samples_per_prompt=2, steps_per_sync=5,
        ema_decay=0.95, skip_tokens=0,
    )  # fmt: skip
    assert rows[-1]["reward_mean"] >= rows[0]["reward_mean"] + 0.1


@pytest.mark.parametrize("weights", ["advantage", "reward", "shortfall"])
def test_verdicts_that_weigh_the_divergence_teach(shown_bed: Bed, weights: str) -> None:
    rows = learn(
        shown_bed, "reward_weighted", context="[{answer}]", samples_per_prompt=4, weights=weights,
        steps_per_sync=5,
    )  # fmt: skip
    assert rows[-1]["reward_mean"] >= rows[0]["reward_mean"] + 0.1
