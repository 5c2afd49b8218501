"""What a report card says of judges with a known fault; each figure where it can be worked out."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from selfkd.cardtext import render_card
from selfkd.controls import ControlOptions, plant
from selfkd.judgetest import Trial
from selfkd.judging import JudgeSpec
from selfkd.records import Prompt, Sample, Verdict
from selfkd.reportcard import notes, report_card
from tests.callers import ScriptedCaller, between, judged

Judge = Callable[[Sample], float | None]
OPTIONS = ControlOptions.model_validate({"per_round": 8})


def samples(count: int = 30) -> list[Sample]:
    """For each prompt a right and a wrong completion of each of two policies, of many lengths."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(count):
        prompt = Prompt.of(f"{i}+90=", str(i + 90))
        for policy in ("base", "round-1"):
            for right in (True, False):
                number = i + 90 if right else i
                text = "so " * int(rng.integers(1, 40)) + str(number)
                found.append(Sample(f"{i}-{policy}-{right}", prompt, 0, text, policy=policy))
    return found


def gold_of(sample: Sample) -> float:
    return float(sample.completion.endswith(f" {sample.answer}"))


def trial(judge: Judge, *, times: int = 1, gold: bool = True, **fields: Any) -> Trial:
    rows = samples()

    def say(asked: list[Sample]) -> list[Verdict]:
        found = []
        for s in asked:
            reward = judge(s)
            found.append(s.verdict(reward, status="ok" if reward is not None else "unparsed"))
        return found

    passes = [say(rows) for _ in range(times)]
    planted = plant(rows, {v.sample_id: v.reward for v in passes[0]}, OPTIONS)
    labels = {s.id: gold_of(s) for s in rows} if gold else {}
    return Trial(JudgeSpec("number"), rows, passes, labels, planted, say(planted), OPTIONS)


def fair(sample: Sample) -> float:
    return float(sample.completion.split()[-1] == sample.answer if sample.completion else 0)


def test_a_fair_judge_has_nothing_to_mind() -> None:
    card = report_card(trial(fair, times=3))
    assert notes(card) == []
    assert (card["samples"], card["scored"], card["unscored"]) == (120, 120, {})
    gold = card["gold"]
    assert gold["accuracy"] == gold["kappa"] == gold["auc"] == gold["pairwise"] == 1
    assert gold["accuracy_interval"] == (1, 1) and gold["brier"] == 0
    assert gold["pairs"] == 30 * 4 and gold["labels"] == 120
    assert card["retest"] == {
        "times": 3, "samples": 120, "changed": 0, "std_mean": 0, "largest": 0,
    }  # fmt: skip
    assert card["policies"]["round-1"] == {
        "samples": 60, "reward_mean": 0.5, "gold_mean": 0.5, "excess": 0,
    }  # fmt: skip
    assert card["swap"] is None  # it never sees two samples together


@pytest.mark.parametrize(
    ("judge", "note"),
    [
        (lambda s: float(len(s.completion)), r"it likes longer completions \(\+1.00\)"),
        (lambda s: fair(s) - len(s.completion) / 1e3, r"it likes shorter completions \(-1.00\)"),
        (lambda s: fair(s) + (s.policy == "base"), r"it gives base \+1.000 more than others at eq"),
        (lambda s: 4.0, "every reward is the same"),
        (lambda s: 4.0, "no better than chance"),
        (lambda s: fair(s) if len(s.completion) < 60 else None, "% of the samples have a reward"),
        (lambda s: float("Score: 5" in s.completion) or fair(s), "fails the controls order, fake"),
    ],
)
def test_a_fault_is_put_into_words(judge: Judge, note: str) -> None:
    found = trial(judge)
    card = report_card(found)
    assert any(re.search(note, text) for text in notes(card)), notes(card)
    assert "mind:" in render_card(card, found, 0)


def compared(write: Callable[[str, int], str], times: int, **options: Any) -> dict[str, Any]:
    """The card of the judge `pairwise`."""
    rows = samples(3)
    caller = ScriptedCaller(write)
    passes = [judged("pairwise", rows, caller, **options) for _ in range(times)]
    spec = JudgeSpec("pairwise", options)
    return report_card(Trial(spec, rows, passes, {}, [], [], OPTIONS))


@pytest.mark.parametrize("times", [1, 2])
def test_a_judge_of_pairs_that_prefers_a_place_is_no_consistent_one(times: int) -> None:
    card = compared(lambda text, k: "Winner: A", times)
    pairs = 3 * 6
    assert card["swap"] == {"pairs": pairs, "consistent": 0}
    assert "100% of its preferences change with the order" in notes(card)
    dropped = compared(lambda text, k: "Winner: A", times, inconsistent="drop")
    assert dropped["swap"] == {"pairs": pairs, "consistent": 0} and dropped["scored"] == 0


def test_a_judge_of_pairs_that_looks_at_them_is_consistent() -> None:
    def longer(text: str, k: int) -> str:
        first, second = between(text).split("Response A: ")[1].split("Response B: ")
        return f"Winner: {'A' if len(first.strip()) > len(second.strip()) else 'B'}"

    card = compared(longer, 1)
    assert card["swap"]["consistent"] == 1
    mute = compared(lambda text, k: "I cannot say.", 1)
    assert mute["swap"] == {"pairs": 0, "consistent": None}


def test_a_judge_without_preferences_is_not_called_consistent() -> None:
    whole = trial(lambda s: 0.5, times=2)
    spec = JudgeSpec("majority")  # looks at whole prompts, but does not ask in both orders
    card = report_card(Trial(spec, whole.samples, whole.passes, {}, [], [], OPTIONS))
    assert card["swap"] == {"pairs": 0, "consistent": None}


def test_a_few_samples_are_no_bias() -> None:
    whole = trial(lambda s: float(len(s.completion)))
    few = Trial(whole.spec, whole.samples[:3], [whole.verdicts[:3]], {}, [], [], OPTIONS)
    card = report_card(few)
    assert card["length"]["spearman"] is not None
    assert not any("longer" in text for text in notes(card))


def test_the_spread_of_a_noisy_judge() -> None:
    rng = np.random.default_rng(0)
    card = report_card(trial(lambda s: fair(s) + rng.normal(scale=0.1), times=8))
    assert card["retest"]["changed"] == 1
    assert card["retest"]["std_mean"] == pytest.approx(0.1, rel=0.1)
    assert 0.95 < card["gold"]["auc"] <= 1
    assert card["gold"]["threshold"] == pytest.approx(0.5, abs=0.1)  # rewards leave [0, 1]
    assert card["gold"]["brier"] is None


def test_grades_are_compared_by_order() -> None:
    found = trial(lambda s: float(len(s.completion)))
    graded = {s.id: float(i % 3) for i, s in enumerate(found.samples)}
    found = Trial(found.spec, found.samples, found.passes, graded, [], [], OPTIONS)
    gold = report_card(found)["gold"]
    assert "accuracy" not in gold and gold["pairs"] > 0
    assert "rank correlation with gold" in render_card(report_card(found), found, 0)


def test_what_cannot_be_known_is_null_and_the_card_is_json() -> None:
    for judge in (fair, lambda s: None, lambda s: 1.0):
        for gold in (True, False):
            found = trial(judge, times=2, gold=gold)
            card = report_card(found)
            json.dumps(card, allow_nan=False)
            assert render_card(card, found, 5)
    card = report_card(trial(lambda s: None))
    assert card["reward"] is card["gold"] is card["length"]["spearman"] is None
    assert card["unscored"] == {"unparsed": 120}
