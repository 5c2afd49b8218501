"""What a round can bring, worked out from samples whose worth is known."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import UsageError
from selfkd.forecast import forecast
from selfkd.forecasttext import meanings, render_forecast
from selfkd.preview import sample_privileged
from selfkd.rundir import round_steps
from selfkd.stopping import SampledOnce
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts
from tests.testbed.play import JUDGES

LONG = """
def long(sample):
    return len(sample.completion)
"""


def answer(policy: str, prompt: str, index: int) -> str:
    """By the first term: 10 always wrong, 11 mostly right, 12 mostly wrong, others always right."""
    if "<pad>" in prompt:  # letters, which this tokenizer does not have: a hint
        return re.findall(r"\d+", prompt)[-1]
    a, b = prompt.rstrip("=").split("+")
    total = int(a) + int(b)
    wrong = {"10": [0, 1, 2, 3], "11": [0], "12": [1, 2, 3]}.get(a, [])
    # The wrong ones are the longest, and in 12 they agree.
    return f"9+9=18;{total + 1}" if index in wrong else f"{total}"


def begun(folder: Path, **settings: Any) -> ScriptedRun:
    (folder / "mine.py").write_text(LONG)
    prompts = write_prompts(folder / "sums.jsonl", [(i + 10, 12) for i in range(8)])
    values: dict[str, Any] = {"samples_per_prompt": 4, "rounds": 1, "sampling": {"max_tokens": 12}}
    values |= settings
    return scripted_run(folder, prompts, answer, **values)


def test_the_figures_of_a_round_that_gold_judged(tmp_path: Path) -> None:
    run = begun(tmp_path)
    play_script(run)
    row = forecast(run.ledger.path, 0)
    assert (row["prompts"], row["samples"], row["scored_share"]) == (8, 32, 1)
    assert row["gold"] == "right"
    assert row["accuracy"]["mean"] == pytest.approx((0 + 0.75 + 0.25 + 5) / 8)
    assert row["coverage"]["mean"] == row["pass_at_k"]["4"] == pytest.approx(7 / 8)
    assert row["pass_at_k"]["1"] == row["accuracy"]["mean"]
    assert row["contested"]["mean"] == pytest.approx(2 / 8)
    assert row["majority"]["accuracy"]["mean"] == pytest.approx(6 / 8)
    assert row["majority"]["share"] == pytest.approx((4 + 3 + 3 + 20) / 32)
    assert row["majority"]["tied"] == 0 and row["agreement"] is None
    assert row["kept"] == {"kept": 7, "coverage": pytest.approx(7 / 8)}
    json.dumps(row, allow_nan=False)
    said = "\n".join(meanings(row))
    assert "can learn from 88% of the prompts" in said
    assert "ceiling at 0.75, where one try stands at 0.75: 0.00 to gain" in said
    assert "come from 25%" in said
    assert "round 0, policy base: 8 prompts, 32 samples, 100% of them scored" in render_forecast(
        row
    )
    assert forecast(run.ledger.path)["round"] == 1  # the last that sampled


def test_a_judge_that_is_not_gold_is_held_against_gold(tmp_path: Path) -> None:
    judge = f"{tmp_path / 'mine.py'}:long"
    run = begun(
        tmp_path, loop="self_rewarding", judge=judge, gold_judge=f"{JUDGES}:right", rounds=1
    )
    play_script(run)
    row = forecast(run.ledger.path, 0)
    assert row["gold"] == "right" and row["agreement"]["auc"] < 0.2
    # It likes the long ones, which are wrong: what it takes is worse than what it is given.
    assert row["selected"]["mean"] == pytest.approx(5 / 8)
    said = "\n".join(meanings(row))
    assert "what is learnt by its choice is noise" in said
    # It reads no answers, so gold's are counted.
    assert row["majority"]["accuracy"]["mean"] == pytest.approx(6 / 8)


def test_without_gold_only_the_vote_is_known(tmp_path: Path) -> None:
    judge = f"{tmp_path / 'mine.py'}:long"
    run = begun(tmp_path, loop="raw", judge=judge, gold_judge=None)
    play_script(run)
    row = forecast(run.ledger.path, 0)
    assert row["gold"] is row["accuracy"] is row["coverage"] is row["majority"] is None
    said = "\n".join(meanings(row))
    assert "nothing says what is right" in said and "needs a judge that reads answers" in said
    assert render_forecast(row)
    with pytest.raises(UsageError, match=r"round 9 .*rounds: 0, 1"):
        forecast(run.ledger.path, 9)


def test_a_run_is_sampled_once_and_goes_on_with_these_samples(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.only_samples = True
    with pytest.raises(SampledOnce):
        run.loop.fn(run, run.options)
    path = run.ledger.path
    assert run.jobs == [] and len(run.asked) == 32
    sample_privileged(run)
    asked = run.asked[32:]
    assert len(asked) == 8 * 4 and all("<pad>" in text for _, text in asked)
    row = forecast(path)
    assert row["round"] == 0
    assert row["teacher"]["privileged"] == 1 and row["teacher"]["plain"] == pytest.approx(6 / 8)
    assert row["teacher"]["gain"]["mean"] == pytest.approx(2 / 8)
    assert "gains +0.25 +- 0.13: too little to tell from noise" in "\n".join(meanings(row))
    sure = {**row["teacher"], "gain": {"mean": 0.25, "stderr": 0.05, "prompts": 64}}
    assert "something to distil" in "\n".join(meanings(row | {"teacher": sure}))
    none = {**row["teacher"], "gain": {"mean": 0.0, "stderr": 0.05, "prompts": 64}}
    assert "has nothing to teach" in "\n".join(meanings(row | {"teacher": none}))
    assert [s.label for s in round_steps(path, 0)] == [""] * 5  # nothing of it is in the rounds

    again = resumed(run, answer)
    again.loop.fn(again, again.options)
    again.finish()
    assert {policy for policy, _ in again.asked} == {"round-1"} and len(again.jobs) == 1
    sample_privileged(resumed(run, lambda *a: pytest.fail("sampled twice")))


def test_starvation_and_a_vote_that_is_wrong_are_said(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "sums.jsonl", [(i + 10, 12) for i in range(8)])
    run = scripted_run(
        tmp_path,
        prompts,
        lambda policy, prompt, index: "1",
        samples_per_prompt=2,
        rounds=1,
        on_no_signal="continue",
    )
    play_script(run)
    said = "\n".join(meanings(forecast(run.ledger.path, 0)))
    assert "will starve: 0% of the prompts" in said
    assert "ceiling at 0.00" in said and "most votes are wrong" in said
