"""The loops really learn, or fail, as their papers and controls say: a character model on addition.

One seed in the test command, three in `make testbed` (SELFKD_TESTBED_SEEDS=0,1,2).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfkd.metrics import alarms
from tests.testbed.addition import Sum, draw, hinted, prompt, scratchpad, write_prompts
from tests.testbed.beds import Bed
from tests.testbed.charmodel import train_base
from tests.testbed.play import JUDGES, play

pytestmark = pytest.mark.testbed


def test_rest_em_gains_and_loses_diversity(bed: Bed) -> None:
    rows = play(
        bed.runs, "rest_em", bed.model, bed.prompts, bed.heldout,
        rounds=2, samples_per_prompt=16, max_kept_per_prompt=5, seed=bed.seed,
        train={"learning_rate": 5e-4, "batch_size": 32, "epochs": 8, "dtype": "float32"},
    )  # fmt: skip
    assert rows[-1]["heldout_reward"] >= rows[0]["heldout_reward"] + 0.4
    assert rows[-1]["reward_mean"] >= rows[0]["reward_mean"] + 0.4
    assert rows[-1]["unique"] <= 0.5 * rows[0]["unique"]
    assert 0.001 < rows[1]["kl_base"] == rows[1]["kl_previous"]
    assert 0.001 < rows[2]["kl_previous"] < rows[2]["kl_base"]


def test_a_judge_that_loves_length_trips_the_gap_alarm_within_three_rounds(bed: Bed) -> None:
    rows = play(
        bed.runs, f"{Path(__file__).parent}/testbed/pleasing.py:pleasing",
        bed.model, bed.prompts, bed.heldout, rounds=3, samples_per_prompt=6, seed=bed.seed,
        judge=f"{JUDGES}:long", gold_judge=f"{JUDGES}:right", gate={"mode": "off"},
        alarms={"stop": ["reward_hacking"]},
        train={"learning_rate": 3e-4, "batch_size": 32, "epochs": 2, "dtype": "float32"},
    )  # fmt: skip
    told = [alarm.round for alarm in alarms(rows) if alarm.name == "reward_hacking"]
    assert told and told[0] <= 3
    first, tripped = rows[0], rows[told[0]]  # what follows was only measured: the run was stopped
    assert tripped["reward_mean"] > first["reward_mean"] + 0.2
    assert tripped["heldout_reward"] < first["heldout_reward"] - 0.1
    assert len(rows) == told[0] + 2 and rows[-1]["reward_mean"] is None


def test_raw_control_gains_nothing_and_loses_pass_at_k(bed: Bed) -> None:
    rows = play(
        bed.runs, "raw", bed.model, bed.prompts, bed.heldout,
        rounds=2, samples_per_prompt=16, max_kept_per_prompt=5, seed=bed.seed, gate={"mode": "off"},
    )  # fmt: skip
    assert rows[-1]["heldout_reward"] <= rows[0]["heldout_reward"] + 0.05
    assert rows[-1]["pass_at_k"]["16"] <= rows[0]["pass_at_k"]["16"] - 0.1


def test_rest_rising_thresholds_beat_a_flat_one(bed: Bed) -> None:
    graded: dict[str, Any] = {
        "judge": f"{JUDGES}:digit_share", "samples_per_prompt": 16, "over_mean": False,
        "train": {"learning_rate": 5e-4, "batch_size": 32, "epochs": 1, "dtype": "float32"},
        "gate": {"mode": "off"},
    }  # fmt: skip
    rising = play(
        bed.runs, "rest", bed.model, bed.prompts, bed.heldout,
        rounds=2, thresholds=[0.5, 0.9], learning_rate_decay=1.0, seed=bed.seed, **graded,
    )  # fmt: skip
    flat = play(
        bed.runs, "rest", bed.model, bed.prompts, bed.heldout,
        rounds=2, thresholds=[0.0], seed=bed.seed, **graded,
    )  # fmt: skip
    base, *improved = [row["heldout_reward"] for row in rising]  # an Improve samples nothing anew
    assert base < improved[0] < improved[1]
    assert rising[-1]["reward_mean"] >= flat[-1]["reward_mean"] + 0.2


@pytest.fixture(scope="module")
def hinted_bed(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A base that adds one digit unaided, and up to three digits only when shown the answer."""
    folder = tmp_path_factory.mktemp(f"hinted{bed.seed}")
    rng = np.random.default_rng(bed.seed)
    heldout = draw(100, rng, [2], set())
    train = draw(200, rng, [2], set(heldout)) + draw(60, rng, [1], set())

    def batch() -> list[tuple[str, str]]:
        plain: list[Sum] = draw(32, rng, [1], set())
        shown = draw(32, rng, [1, 2, 3], {*heldout, *train})
        return [(prompt(*s), scratchpad(*s)) for s in plain] + [
            (hinted(*s), scratchpad(*s)) for s in shown
        ]

    return Bed(
        train_base(folder / "base", batch, steps=500, seed=bed.seed),
        write_prompts(folder / "train.jsonl", train),
        write_prompts(folder / "heldout.jsonl", heldout),
        folder / "runs",
        bed.seed,
    )


def test_star_needs_rationalisation_to_reach_the_next_length(hinted_bed: Bed) -> None:
    bed = hinted_bed
    settings = {
        "rounds": 2, "hint": "[{answer}]", "first_steps": 150, "seed": bed.seed,
        "sampling": {"temperature": 0.0, "max_tokens": 40}, "gate": {"mode": "off"},
    }  # fmt: skip
    without = play(
        bed.runs, "star", bed.model, bed.prompts, bed.heldout, rationalise=False, **settings
    )
    both = play(bed.runs, "star", bed.model, bed.prompts, bed.heldout, **settings)
    assert without[-1]["heldout_reward"] <= 0.05
    assert both[-1]["heldout_reward"] >= 0.2
    assert both[0]["extra"]["rationalise"]["kept"] > 50
