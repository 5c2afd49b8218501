"""Agreement of a judge with gold, read from the steps of a round."""

from pathlib import Path

import pytest

from selfkd.audit import audit_figures
from selfkd.ledger import Ledger
from selfkd.records import VERDICTS, Verdict, rows_table
from selfkd.rundir import of_verb, round_steps


def record(ledger: Ledger, label: str, samples: str, rewards: dict[str, float | None]) -> None:
    """A judge step; a sample's id begins with that of its prompt."""
    step = ledger.step(0, "judge", label, {"samples": samples})
    rows = [Verdict(id, id[0], "j", r, "ok" if r is not None else "unparsed")
            for id, r in rewards.items()]  # fmt: skip
    step.write(0, rows_table(rows, VERDICTS))
    step.finish({})


def figures(path: Path) -> dict[str, object] | None:
    return audit_figures(of_verb(round_steps(path, 0), "judge"))


def test_samples_are_matched_by_their_id_and_pairs_are_those_that_gold_tells_apart(tmp_path):
    ledger = Ledger(tmp_path)
    record(ledger, "probe", "others", {"a1": 0.0})
    record(ledger, "", "own", {"b2": None, "a1": 3.0, "a2": 1.0, "a3": 1.0, "b1": 2.0, "c1": 5.0})
    assert figures(tmp_path) is None
    gold = {"a1": 1.0, "a2": 0.0, "a3": 1.0, "b1": 1.0, "b2": 0.0, "c1": None}
    record(ledger, "audit", "own", gold)
    found = figures(tmp_path)
    # Right: 3, 1 and 2; wrong: 1. Pairs: a1 over a2, and a3 even with it; b2 has no score.
    assert found == {
        "samples": 5, "coverage": 4 / 5, "auc": 2.5 / 3, "pairs": 2, "pair_accuracy": 0.75,
        "calibration": None,  # 3 is no chance of being right
    }  # fmt: skip


def test_a_round_without_both_kinds_of_samples_has_no_auc(tmp_path):
    ledger = Ledger(tmp_path)
    record(ledger, "", "own", {"a1": 3.0})
    record(ledger, "audit", "own", {"a1": 1.0})
    assert figures(tmp_path) == {
        "samples": 1, "coverage": 1.0, "auc": None, "pairs": 0, "pair_accuracy": None,
        "calibration": None,
    }  # fmt: skip


def test_rewards_that_are_chances_are_held_to_them(tmp_path):
    ledger = Ledger(tmp_path)
    record(ledger, "", "own", {"a1": 0.95, "a2": 0.95, "b1": 0.25, "b2": 0.25})
    record(ledger, "audit", "own", {"a1": 1.0, "a2": 0.0, "b1": 0.0, "b2": 0.0})
    found = figures(tmp_path)
    # Half of the sure ones are right, none of the doubtful: gaps of 0.45 and 0.25.
    assert found and found["calibration"] == pytest.approx((0.45 + 0.25) / 2)


def test_a_judge_without_any_reward_is_not_calibrated(tmp_path):
    ledger = Ledger(tmp_path)
    record(ledger, "", "own", {"a1": None})
    record(ledger, "audit", "own", {"a1": 1.0})
    found = figures(tmp_path)
    assert found and found["coverage"] == 0 and found["calibration"] is None
