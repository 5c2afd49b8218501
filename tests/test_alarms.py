"""Alarms: what each is told of, what it is silent about, and what a run does at one."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfkd.alarmconfig import AlarmConfig
from selfkd.alarms import CHECKS, Alarm, alarms
from selfkd.config import resolve
from selfkd.errors import UsageError
from selfkd.metrics import recorded_rows, round_rows, run_alarms
from selfkd.records import EXAMPLES, Example, Prompt, rows_table
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.synthetic import generate, judge, make_samples, measure, new_run, prompts
from tests.testbed.addition import write_prompts

EXAMPLE = Path(__file__).parents[1] / "runs" / "example"

CALM: dict[str, Any] = {
    "policy": "p", "samples": 80, "scored": 80, "unscored": 0, "unscored_by": {}, "kept": 20,
    "reward_mean": 0.3, "reward_stderr": 0.01, "accept_rate": 0.25, "coverage": 0.6,
    "heldout_reward": 0.4, "heldout_stderr": 0.01, "length_mean": 30.0, "truncated": 0.1,
    "distinct_2": 0.5, "unique": 0.9, "tokens": 2400, "gate": None, "prompts": 100,
    "pass_at_k": {"1": 0.3, "8": 0.8}, "reward_best": 0.8, "reward_best_stderr": 0.04,
    "reward_top": 0.3, "reward_length": 0.0, "overlap": 0.0, "anchors": None,
    "controls": None,
}  # fmt: skip


def rows_of(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"round": i, **CALM, **change} for i, change in enumerate(changes)]


def told(*changes: dict[str, Any], **config: Any) -> list[tuple[int, str]]:
    found = alarms(rows_of(*changes), AlarmConfig.model_validate(config))
    return [(a.round, a.name) for a in found]


def test_calm_rounds_raise_no_alarm():
    assert told({}, {}, {}, {}) == []
    assert alarms([]) == []


def test_the_good_run_of_the_readme_raises_none():
    assert run_alarms(EXAMPLE, recorded_rows(EXAMPLE)) == []
    assert run_alarms(EXAMPLE, round_rows(EXAMPLE)) == []


def test_rounds_without_samples_raise_no_alarm():
    empty = dict.fromkeys(CALM)
    assert told({}, empty, {}) == []
    assert told(empty, empty) == []


def test_reward_hacking_is_a_fall_from_the_best_held_out_beyond_the_noise():
    rows = [
        {"reward_mean": r, "heldout_reward": h}
        for r, h in zip([0.3, 0.4, 0.5, 0.6], [0.5, 0.55, 0.54, 0.3], strict=True)
    ]
    assert told(*rows) == [(3, "reward_hacking")]  # .54 is no fall from .55
    assert told(*rows, reward_hacking=20) == []
    noisy = [row | {"heldout_stderr": 0.1} for row in rows]
    assert told(*noisy) == []
    assert told(rows[0], {"reward_mean": 0.9, "heldout_reward": 0.0}) == [(1, "reward_hacking")]
    assert told(rows[0], {"reward_mean": 0.3, "heldout_reward": 0.0}) == []  # the judge saw it
    gone = {"gate": {"decision": "rolled_back"}}
    assert told(rows[0], rows[1], rows[3] | gone) == []
    (alarm,) = alarms(rows_of(*rows))
    assert isinstance(alarm, Alarm) and alarm.level == "critical"
    assert "0.400 to 0.600" in alarm.message and "0.550 to 0.300" in alarm.message


def test_pass_decline_needs_one_try_up_and_many_tries_down():
    fall = {"pass_at_k": {"1": 0.4, "8": 0.6}}
    assert told({}, fall) == [(1, "pass_decline")]
    assert told({}, {"pass_at_k": {"1": 0.4, "8": 0.75}}) == []  # within the noise
    assert told({}, {"pass_at_k": {"1": 0.2, "8": 0.5}}) == []
    assert told({}, {"pass_at_k": {"1": 0.4}}) == []


def test_diversity_collapse_is_a_loss_that_bought_nothing():
    fall = [{"unique": u} for u in (1.0, 0.8, 0.69, 0.5)]
    assert told(*fall) == [(2, "diversity_collapse")]
    assert told(*fall, diversity_collapse=0.4) == [(3, "diversity_collapse")]
    assert told(fall[0], fall[3] | {"reward_best": 0.95}) == []
    assert told({"unique": None}, fall[3]) == []


def test_length_drift_since_the_first_round_and_in_one():
    assert told(*({"length_mean": n} for n in (20.0, 24.0, 28.0, 32.0))) == [(3, "length_drift")]
    assert told({"length_mean": 20.0}, {"length_mean": 26.0}) == [(1, "length_drift")]
    assert told(*({"length_mean": n} for n in (40.0, 10.0, 20.0))) == []  # back from short
    better = {"length_mean": 40.0, "heldout_reward": 0.6}
    assert told({"length_mean": 20.0}, better) == []


def test_length_bias_needs_a_taste_and_growth():
    taste = {"reward_length": 0.5}
    assert told(taste, taste | {"length_mean": 36.0}) == [(1, "length_bias")]
    assert told(taste, taste) == []
    assert told(taste, taste | {"length_mean": 36.0, "heldout_reward": 0.6}) == []
    assert told(taste, {"length_mean": 36.0}) == []


def test_judge_drift_is_measured_in_spreads_and_beyond_the_noise():
    anchors = {"samples": 32, "reward_mean": 0.7, "reward_first": 0.5, "shift": 0.2}
    sure = anchors | {"stderr": 0.03, "spread": 0.4}
    assert told({}, {"anchors": sure}) == [(1, "judge_drift")]
    assert told({}, {"anchors": sure | {"shift": -0.2}}) == [(1, "judge_drift")]
    assert told({}, {"anchors": sure | {"stderr": 0.15}}) == []
    assert told({}, {"anchors": sure | {"spread": 2.0}}) == []
    assert told({}, {"anchors": sure | {"shift": 0.0, "spread": 0.0, "stderr": 0.0}}) == []


@pytest.mark.parametrize(
    ("change", "name", "word"),
    [
        ({"accept_rate": 0.01}, "low_acceptance", "1.0%"),
        ({"accept_rate": 0.0}, "low_acceptance", "0.0%"),
        ({"accept_rate": 0.99}, "high_acceptance", "99.0%"),
        ({"unscored": 8, "unscored_by": {"timeout": 8}}, "judge_failures", "9%.*8 timeout"),
        ({"coverage": 0.12}, "low_coverage", "12%"),
        ({"truncated": 0.6}, "truncation", "60%.*max_tokens"),
        ({"reward_top": 0.97}, "judge_saturation", "97%"),
        ({"overlap": 0.05}, "overlap", "5.0%"),
    ],
)
def test_alarms_on_one_round(change, name, word):
    (alarm,) = alarms(rows_of(change))
    assert alarm.name == name and re.search(word, alarm.message)
    assert told(change, off=[name]) == []


def test_every_alarm_has_a_threshold_of_its_name():
    # What controls may fail is told where controls are: config section `controls`.
    names = [name for name, _, _ in CHECKS if name != "judge_controls"]
    assert [*names, "stop", "rollback", "off"] == list(AlarmConfig.model_fields)
    base = {"loop": "rest_em", "model": "m", "prompts": "p.jsonl", "judge": "number"}
    config = resolve({**base, "alarms": {"stop": "overlap", "overlap": 0.1}}).config
    assert config.alarms.stop == ["overlap"] and config.alarms.overlap == 0.1
    with pytest.raises(UsageError, match=r"alarms\.stop"):
        resolve({**base, "alarms": {"stop": ["reward_hackin"]}})


def test_thresholds_are_those_of_the_run(tmp_path):
    rows = rows_of({"coverage": 0.12})
    assert run_alarms(new_run(tmp_path / "plain").path, rows)[0].name == "low_coverage"
    assert run_alarms(new_run(tmp_path / "own", alarms={"low_coverage": 0.1}).path, rows) == []
    other = new_run(tmp_path / "other", alarms={"of another version": 1})
    assert len(run_alarms(other.path, rows)) == 1


# -- the figures that they look at ----------------------------------------------------------------


def test_rewards_by_prompt_and_against_length(tmp_path):
    ledger = new_run(tmp_path / "run")
    a, b = prompts(2)
    samples = make_samples(0, [(a, [1, 2, 0]), (a, [1, 0]), (b, [3, 4, 5, 0]), (b, [3, 0])])
    generate(ledger, 0, samples, shard=3)
    judge(ledger, 0, samples, [1.0, 0.5, 1.0, 0.0])
    (row,) = round_rows(ledger.path)
    assert row["prompts"] == 2 and row["reward_best"] == 1.0 and row["reward_best_stderr"] == 0.0
    assert row["reward_stderr"] == pytest.approx(np.std([0.75, 0.5], ddof=1) / np.sqrt(2))
    assert row["reward_top"] == 0.5
    # Apart from their prompts' means: rewards .25 -.25 .5 -.5, lengths .5 -.5 1 -1.
    assert row["reward_length"] == pytest.approx(1.0)
    pairs_b = [{(3, 4), (4, 5), (5, 0)}, {(3, 0)}]
    pairs_a = [{(1, 2), (2, 0)}, {(1, 0)}]
    jaccard = [len(x & y) / len(x | y) for x, y in (pairs_a, pairs_b)]
    assert row["similarity"] == pytest.approx(np.mean(jaccard))


def test_similarity_of_equal_and_of_shared_completions(tmp_path):
    ledger = new_run(tmp_path / "run")
    a, b = prompts(2)
    same, half = [(a, [1, 2, 0])] * 2, [(b, [1, 2, 3]), (b, [1, 2, 4])]
    generate(ledger, 0, make_samples(0, [*same, *half]))
    (row,) = round_rows(ledger.path)
    assert row["similarity"] == pytest.approx((1.0 + 1 / 3) / 2)
    assert row["reward_best"] is None and row["reward_length"] is None


def test_overlap_sees_through_case_and_blanks(tmp_path):
    ledger = new_run(tmp_path / "run")
    measure(ledger, 0, [1.0, 0.0, 1.0, 0.0])  # "0 + 1 =", "1 + 1 =", ...
    twin, other = Prompt.of("1  +\n1 =", "two"), Prompt.of("9 + 9 =", "18")
    generate(ledger, 0, make_samples(0, [(twin, [1, 0]), (other, [1, 0])]))
    step = ledger.step(0, "train", "", {})
    step.write(0, rows_table([Example("e", twin.id, ("s",), (1,), (2,))], EXAMPLES))
    step.finish({"policy": "round-1"})
    assert round_rows(ledger.path)[0]["overlap"] == 0.25


def test_anchors_compare_with_the_first_round(tmp_path):
    ledger = new_run(tmp_path / "run")
    samples = make_samples(0, [(p, [1, 0]) for p in prompts(4)])
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [0.0, 1.0, "timeout", 1.0])
    again = make_samples(1, [(p, [1, 0]) for p in prompts(2)])
    generate(ledger, 1, again)
    judge(ledger, 1, again, [1.0, 1.0])
    judge(ledger, 1, samples[:3], [0.5, 1.0, 1.0], "anchors")
    first, second = round_rows(ledger.path)
    assert first["anchors"] is None
    assert second["anchors"] == {
        "samples": 2, "reward_mean": 0.75, "reward_first": 0.5, "shift": 0.25,
        "stderr": pytest.approx(0.25), "spread": 0.5,
    }  # fmt: skip
    assert second["reward_mean"] == 1.0 and second["extra"] == {}


# -- what a run does about them -------------------------------------------------------------------


def script(folder: Path, right: dict[str, int], **settings: Any) -> ScriptedRun:
    """ReST-EM on ten sums of which each policy gets the first `right[policy]` right."""
    sums = write_prompts(folder / "sums.jsonl", [(i, 1) for i in range(10)])
    held = write_prompts(folder / "held.jsonl", [(i, 2) for i in range(10)])
    source = {"source": str(sums), "fresh": False, "heldout_source": str(held)}
    return scripted_run(
        folder, sums, answer_by(right), rounds=3, samples_per_prompt=2, prompts=source,
        on_no_signal="continue", gate={"mode": "off"}, **settings,
    )  # fmt: skip


def answer_by(right: dict[str, int]) -> Any:
    def answer(policy: str, text: str, k: int) -> str:
        a, b = map(int, text.strip("=").split("+"))
        return f"{k};{a + b if a < right[policy] else 0}"

    return answer


RIGHT = {"base": 5, "round-1": 8, "round-2": 1, "round-3": 8}


def policies(run: ScriptedRun) -> list[Any]:
    return [row["policy"] for row in round_rows(run.ledger.path)]


def test_an_alarm_warns_and_the_run_goes_on(tmp_path):
    run = script(tmp_path, RIGHT)
    assert play_script(run) == ""
    assert policies(run) == ["base", "round-1", "round-2", "round-3"]
    events = [json.loads(line) for line in (run.ledger.path / "events.jsonl").open()]
    assert ("low_coverage", 2) in [
        (e["alarm"], e["round"]) for e in events if e["event"] == "alarm"
    ]


def test_an_alarm_may_end_the_run_and_a_resume_ends_there_too(tmp_path):
    run = script(tmp_path, RIGHT, alarms={"stop": ["low_coverage"]})
    assert play_script(run) == "round 2 raised the alarm low_coverage"
    again = resumed(run, answer_by(RIGHT))
    assert play_script(again) == "round 2 raised the alarm low_coverage"
    assert again.asked == [] and again.jobs == []


def test_an_alarm_may_send_the_run_back_to_its_best_policy(tmp_path):
    right = RIGHT | {"round-3": 1}
    run = script(tmp_path, right, alarms={"rollback": ["low_coverage"]})
    assert play_script(run) == ""
    assert policies(run)[2:] == ["round-2", "round-1"]  # round-3 is no better: it is left behind
    again = resumed(run, answer_by(right))
    assert play_script(again) == "" and again.asked == []
    assert policies(again) == policies(run)


def test_without_a_best_policy_a_rollback_ends_the_run(tmp_path):
    run = script(tmp_path, RIGHT, alarms={"rollback": ["low_coverage"]})
    run.gold_judge = None
    assert play_script(run) == "round 2 raised the alarm low_coverage"


def test_anchors_are_judged_again_in_every_later_round(tmp_path):
    run = script(tmp_path, RIGHT, judging={"anchors": 4})
    play_script(run)
    rows = round_rows(run.ledger.path)
    assert [bool(r["anchors"]) for r in rows] == [False, True, True, True]
    assert all(r["anchors"]["samples"] == 4 and r["anchors"]["shift"] == 0 for r in rows[1:])
    steps = sorted(p.name for p in (run.ledger.path / "rounds" / "001").iterdir())
    assert [name.partition("-")[2] for name in steps].count("judge-anchors") == 1
    again = resumed(run, answer_by(RIGHT))
    play_script(again)
    assert again.asked == []
