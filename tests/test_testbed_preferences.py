"""Loops that learn from votes, preferences and their own judgements, on the character model.

What must show: a vote is a ceiling and a lock, plain DPO makes what it prefers unlikely, SPIN and
self-judging wear out and the gate notices. One seed of the two cheapest in the test command, the
rest in `make testbed`.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from selfkd.metrics import alarms
from tests.testbed import SEEDS
from tests.testbed.beds import Bed, Row, adding, by_testbed_only
from tests.testbed.play import JUDGES, play

pytestmark = pytest.mark.testbed

Settings = dict[str, Any]


def training(rate: float, epochs: float) -> Settings:
    return {"learning_rate": rate, "batch_size": 32, "epochs": epochs, "dtype": "float32"}


def run_dir(runs: Path) -> Path:
    """The run that was started last."""
    return max(runs.glob("*/run.yaml"), key=lambda file: file.stat().st_mtime).parent


def shift(run: Path, round: int = 0) -> float:
    """Change of the chosen answers' log-probability at the end of a round's training, in nats."""
    (log,) = (run / "rounds" / f"{round:03d}").glob("*-train/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()][-8:]
    return float(np.mean([row["chosen_shift"] for row in rows]))


def votes(run: Path, round: int) -> tuple[float, float]:
    """Accuracy of the most frequent answer, and its mean share of the votes."""
    (step,) = (run / "rounds" / f"{round:03d}").glob("*-judge-audit")
    rows = [
        row for file in sorted(step.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["prompt_id"], []).append(row)
    right, share = [], []
    for members in groups.values():
        label, count = Counter(row["answer"] for row in members).most_common(1)[0]
        right.append(any(row["answer"] == label and row["reward"] == 1 for row in members))
        share.append(count / len(members))
    return float(np.mean(right)), float(np.mean(share))


def test_dpo_makes_what_it_prefers_unlikely_and_iterative_rpo_does_not(bed: Bed) -> None:
    rows, shifts = {}, {}
    for alpha in (0.0, 1.0):
        rows[alpha] = play(
            bed.runs, "iterative_rpo", bed.model, bed.prompts, bed.heldout,
            rounds=1, samples_per_prompt=12, pairs_per_prompt=4, alpha=alpha, seed=bed.seed,
            train=training(3e-4, 2), gate={"mode": "off"},
        )  # fmt: skip
        shifts[alpha] = shift(run_dir(bed.runs))
    assert shifts[0.0] < 0 < shifts[1.0]
    assert rows[1.0][-1]["heldout_reward"] >= rows[0.0][-1]["heldout_reward"] + 0.15
    assert rows[1.0][-1]["reward_mean"] >= rows[1.0][0]["reward_mean"] + 0.2


SPIN: Settings = {
    "completion": "{worked}", "betas": [0.1], "learning_rates": [1.0], "train": training(1e-4, 5),
}  # fmt: skip


def test_spin_wears_out_in_its_second_round_and_the_gate_rolls_back(bed: Bed) -> None:
    rows = play(
        bed.runs, "spin", bed.model, bed.prompts, bed.heldout, rounds=3, seed=bed.seed, **SPIN
    )
    first, *later = [row["heldout_reward"] for row in rows[1:]]
    assert first >= rows[0]["heldout_reward"] + 0.1
    assert rows[-1]["gate"]["decision"] == "rolled_back"
    assert rows[-1]["gate"]["best"] == "round-1"
    assert later[-1] <= first - 0.1


@by_testbed_only
def test_a_schedule_keeps_spin_alive(bed: Bed) -> None:
    rows = play(
        bed.runs, "spin", bed.model, bed.prompts, bed.heldout, rounds=3, seed=bed.seed,
        gate={"mode": "off"}, **SPIN | {"betas": [0.1, 5.0], "learning_rates": [1.0, 0.1]},
    )  # fmt: skip
    assert rows[-1]["heldout_reward"] >= rows[1]["heldout_reward"] - 0.1


LMSI: Settings = {
    "judge": {"use": "majority", "pattern": "[0-9]+$"}, "gold_judge": f"{JUDGES}:right",
    "formats": ["cue"], "cue": "", "samples_per_prompt": 16, "gate": {"mode": "off"},
    "train": training(5e-4, 3),
    # The paper's. At 1.0 this base scatters its votes: the label is then what two or three of 16
    # attempts agree on, and the policy that learns it passes the vote by more than noise.
    "sampling": {"temperature": 0.7, "max_tokens": 40},
}  # fmt: skip


@pytest.fixture(scope="module", params=SEEDS, ids=lambda s: f"seed{s}")
def mid_bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A base whose vote is right about half of the time.

    With the usual one, 100 steps longer, the vote is right three times in four, but the styles of
    its attempts are still mixed. To learn the voted paths is then also to change to the style that
    wins votes, and takes the policy past the vote (by 0.09 and 0.12 on two seeds).
    """
    return adding(tmp_path_factory.mktemp(f"mid{request.param}"), request.param, steps=500)


@by_testbed_only
def test_the_vote_is_the_ceiling_of_lmsi(mid_bed: Bed) -> None:
    bed = mid_bed
    rows = play(
        bed.runs, "lmsi", bed.model, bed.prompts, bed.heldout, rounds=1, seed=bed.seed, **LMSI
    )
    accuracy, _ = votes(run_dir(bed.runs), 0)
    before, after = (row["heldout_reward"] for row in rows)
    assert round(after - before, 2) >= 0.1  # ten of a hundred prompts
    assert after <= accuracy + 0.1


@pytest.fixture(scope="module", params=SEEDS, ids=lambda s: f"seed{s}")
def weak_bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A base whose vote is mostly wrong: the usual one, stopped early."""
    folder = tmp_path_factory.mktemp(f"weak{request.param}")
    return adding(folder, request.param, steps=400, train=200)


@by_testbed_only
def test_a_weak_base_becomes_sure_of_what_is_wrong(weak_bed: Bed) -> None:
    bed = weak_bed
    play(bed.runs, "lmsi", bed.model, bed.prompts, bed.heldout, rounds=2, seed=bed.seed, **LMSI)
    (before, share_before), (after, share_after) = (votes(run_dir(bed.runs), r) for r in (0, 2))
    assert share_after >= 2 * share_before
    assert after <= before + 0.15 and after < 0.6


def judged(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """Answers to be judged: half of them with a digit of the sum changed."""
    found = []
    for question, answer in rows:
        place = int(rng.integers(1, len(answer.rpartition(";")[2]) + 1))
        digit = str(rng.integers(10))
        changed = rng.random() < 0.5 and answer[-place] != digit
        if changed:
            answer = answer[:-place] + digit + answer[len(answer) - place + 1 :]
        found.append((f"{question}{answer}[", "0" if changed else "5"))
    return found


@pytest.fixture(scope="module", params=SEEDS, ids=lambda s: f"seed{s}")
def judging_bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A base that has also learnt to say 5 of a right answer and 0 of a wrong one."""
    folder = tmp_path_factory.mktemp(f"judging{request.param}")
    return adding(folder, request.param, steps=700, train=150, more=judged)


@by_testbed_only
def test_a_self_judge_does_not_see_the_fall_that_the_gate_and_the_gap_alarm_tell(
    judging_bed: Bed,
) -> None:
    bed = judging_bed
    settings: Settings = {
        "judge": {
            "use": "self_reward", "draws": 3, "template": "{question}{response}[", "retries": 0,
            "score_pattern": "^([0-5])", "max_tokens": 40, "temperature": 1.0, "top_p": 1.0,
            "unfenced": True,
        },
        "gold_judge": f"{JUDGES}:right", "samples_per_prompt": 8, "alpha": 1.0,
        "train": training(3e-5, 4), "rounds": 4,
    }  # fmt: skip

    def rounds(**more: Any) -> list[dict[str, Any]]:
        return play(
            bed.runs, "self_rewarding", bed.model, bed.prompts, bed.heldout,
            seed=bed.seed, **settings, **more,
        )  # fmt: skip

    unguarded = rounds(gate={"mode": "off"})
    first, last = unguarded[0], unguarded[-1]
    assert last["heldout_reward"] <= first["heldout_reward"] - 0.15
    assert last["reward_mean"] >= first["reward_mean"] - 0.3  # of 5: it sees nothing of it
    told = any(alarm.name == "reward_hacking" for alarm in alarms(unguarded))
    guarded = rounds()
    assert told or guarded[-1]["gate"]["decision"] == "rolled_back"
    best = max(row["heldout_reward"] for row in guarded)
    assert best >= first["heldout_reward"]  # what the run stands by is no worse than the base
