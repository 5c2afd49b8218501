"""How a run deals with samples that get no reward: what stops it, and what is asked again."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from selfkd.errors import DataError
from selfkd.metrics import alarms, round_rows
from selfkd.repair import check_run
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts

JUDGE = '''
from pathlib import Path

HERE = Path(__file__).parent

def served(sample):
    """Fails on every other sample while its server is down."""
    with (HERE / "asked.txt").open("a") as file:
        file.write(sample.id + "\\n")
    if sample.id.endswith("1") and (HERE / "down").exists():
        raise ConnectionError("nobody answers")
    return float(sample.completion == sample.answer)

def reader(sample):
    """Reads nothing but right answers."""
    if sample.completion != sample.answer:
        return sample.verdict(None, status="unparsed", rationale="no score in it")
    return 1.0

def same(sample):
    return 3.0

def silent(sample):
    return None
'''


def answer(policy: str, prompt: str, index: int) -> str:
    a, b = prompt.rstrip("=").split("+")
    return str(int(a) + int(b) + index)


def begun(folder: Path, judge: str, **settings: Any) -> ScriptedRun:
    (folder / "mine.py").write_text(JUDGE)
    prompts = write_prompts(folder / "sums.jsonl", [(i + 10, 12) for i in range(10)])
    values = {"samples_per_prompt": 2, "rounds": 1, "gold_judge": None} | settings
    return scripted_run(folder, prompts, answer, judge=f"{folder / 'mine.py'}:{judge}", **values)


def test_a_judge_that_breaks_stops_the_run_and_is_asked_again_for_what_it_failed_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "down").touch()
    run = begun(tmp_path, "served")
    with pytest.raises(DataError, match=r"failed on 10 of 20 samples.*nobody answers") as said:
        play_script(run)
    assert said.value.exit_code == 4
    assert not list(run.ledger.path.glob("rounds/*/*-keep"))
    (tmp_path / "down").unlink()
    (tmp_path / "asked.txt").unlink()
    again = resumed(run, answer)
    play_script(again)
    asked = [i for i in (tmp_path / "asked.txt").read_text().split() if i.startswith("0-")]
    assert len(asked) == 10 and all(i.endswith("1") for i in asked)
    row = round_rows(run.ledger.path)[0]
    assert (row["scored"], row["unscored"], row["scored_share"]) == (20, 0, 1)
    assert row["kept"] == 10


def test_the_verdicts_of_a_judge_that_broke_stay_beside_the_new_ones(tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    run = begun(tmp_path, "served")
    with pytest.raises(DataError, match="failed on 10"):
        play_script(run)
    (shard,) = run.ledger.round_dir(0).glob("*-judge/*.parquet")
    first = shard.read_bytes()
    (tmp_path / "down").unlink()
    play_script(resumed(run, answer))
    (former,) = shard.parent.glob("*.parquet.*")
    assert former.name == "00000.parquet.1" and former.read_bytes() == first
    assert pq.read_table(former).column("status").to_pylist().count("error") == 10
    # Nobody takes them for verdicts that count.
    assert list(shard.parent.glob("*.parquet")) == [shard]
    assert set(pq.read_table(shard).column("status").to_pylist()) == {"ok"}
    recorded = json.loads((shard.parent / "manifest.json").read_text())["shards"]
    assert [entry["file"] for entry in recorded] == [shard.name]
    assert round_rows(run.ledger.path)[0]["scored"] == 20 and check_run(run.ledger.path) == []


def test_a_run_stands_by_its_newest_policy_where_no_held_out_answer_got_a_reward(
    tmp_path: Path,
) -> None:
    source = {"source": str(tmp_path / "sums.jsonl"), "fresh": False, "heldout": 4}
    judging = {"max_unscored": 1.0}
    run = begun(
        tmp_path, "served", gold_judge=f"{tmp_path / 'mine.py'}:silent", prompts=source,
        judging=judging,
    )  # fmt: skip
    play_script(run)
    assert round_rows(run.ledger.path)[1]["heldout_scored"] == 0
    assert run.standing == "round-1"


def test_too_few_rewards_stop_the_run_before_it_learns(tmp_path: Path) -> None:
    run = begun(tmp_path, "reader", judging={"max_unscored": 0.4})
    with pytest.raises(DataError, match=r"gave 10 of 20 samples no reward .10 unparsed.*no score"):
        play_script(run)
    assert not list(run.ledger.path.glob("rounds/*/*-keep")) and run.jobs == []


def test_below_the_limit_the_share_is_on_record(tmp_path: Path) -> None:
    run = begun(tmp_path, "reader", judging={"max_unscored": 0.5})
    play_script(run)
    rows = round_rows(run.ledger.path)
    assert rows[0]["scored_share"] == 0.5 and rows[0]["unscored_by"] == {"unparsed": 10}
    assert "50% of the samples have no reward" in " ".join(a.message for a in alarms(rows))


def test_a_constant_judge_is_told_of_and_makes_no_pair(tmp_path: Path) -> None:
    run = begun(tmp_path, "same", loop="iterative_rpo", on_no_signal="continue")
    play_script(run)
    rows = round_rows(run.ledger.path)
    assert rows[0]["reward_p10"] == 3 and rows[0]["pairs"]["pairs"] == 0
    assert run.jobs == [] and rows[0]["train"]["no_signal"]
    assert "judge_saturation" in {a.name for a in alarms(rows)}
