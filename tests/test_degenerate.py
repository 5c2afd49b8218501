"""Models that say nothing, too much or always the same; clocks that go back; runs that move."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from selfkd import ledger
from selfkd.alarms import alarms
from selfkd.errors import DataError
from selfkd.metrics import curves_document, round_rows
from selfkd.repair import check_run
from selfkd.rundir import read_lines
from tests.fakes import play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34), (5, 5)])


def right(policy: str, text: str, k: int) -> str:
    return str(eval(text[:-1]))


@pytest.mark.parametrize(
    ("said", "reason", "alarm"),
    [("", "empty", "low_acceptance"), ("1+" * 30, "truncated", "truncation")],
)
def test_a_model_that_says_nothing_or_never_ends_teaches_nothing(
    tmp_path, sums, said, reason, alarm
):
    run = scripted_run(tmp_path, sums, lambda *a: said, rounds=1, samples_per_prompt=4)
    with pytest.raises(DataError, match=rf"kept no sample \(12 {reason}\)") as caught:
        play_script(run)
    assert caught.value.exit_code == 4 and run.jobs == []
    run = scripted_run(
        tmp_path, sums, lambda *a: said, rounds=1, samples_per_prompt=4, on_no_signal="continue"
    )
    play_script(run)
    assert run.jobs == [] and {policy for policy, _ in run.asked} == {"base"}
    assert alarm in {a.name for a in alarms(round_rows(run.ledger.path))}


def test_prompts_too_long_are_listed_by_id_and_named_where_no_other_is_left(tmp_path):
    prompts = write_prompts(tmp_path / "sums.jsonl", [(10**60, 1), (10**70, 2)])
    run = scripted_run(tmp_path, prompts, right, rounds=1, samples_per_prompt=2)
    reason = r"kept no sample \(2 prompts too long, see 01-prompts/dropped\.jsonl\)"
    with pytest.raises(DataError, match=rf"{reason}.*raise engine\.max_model_len") as caught:
        play_script(run)
    assert run.asked == [] and "--dropped" not in caught.value.remedy
    rows = read_lines(run.ledger.round_dir(0) / "01-prompts" / "dropped.jsonl")
    assert [row["prompt_id"] for row in rows] == [p.id for p in run.prompts.train(0)]
    assert all(row["reason"] == "too_long" and row["tokens"] > row["limit"] == 56 for row in rows)


def test_prompts_too_long_are_told_beside_samples_that_were_dropped(tmp_path):
    prompts = write_prompts(tmp_path / "sums.jsonl", [(10**60, 1), (1, 2)])
    run = scripted_run(tmp_path, prompts, lambda *a: "9", rounds=1, samples_per_prompt=2)
    reason = r"\(2 incorrect, 1 prompts too long, see 01-prompts/dropped\.jsonl\).*--dropped"
    with pytest.raises(DataError, match=reason):
        play_script(run)


def test_the_same_answer_again_is_learnt_once(tmp_path, sums):
    run = scripted_run(tmp_path, sums, right, rounds=1, samples_per_prompt=4)
    play_script(run)
    row = round_rows(run.ledger.path)[0]
    assert (row["kept"], row["dropped"]) == (3, {"duplicate": 9})


def test_a_clock_that_goes_back_changes_no_order(tmp_path, sums, monkeypatch):
    start, steps = datetime(2026, 10, 25, 3, tzinfo=UTC), count()
    monkeypatch.setattr(ledger, "now", lambda: (start - timedelta(minutes=next(steps))).isoformat())
    run = scripted_run(tmp_path, sums, right, rounds=2, samples_per_prompt=2)
    play_script(run)
    run.emit("run_finished")
    path = run.ledger.path
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[0]["time"] > events[-1]["time"]
    document = curves_document(path)
    assert document["state"] == "finished"
    assert [r["policy"] for r in document["rounds"]] == ["base", "round-1", "round-2"]
    assert all(s >= 0 for r in document["rounds"] for s in r["seconds"].values() if s is not None)
    again = resumed(run, right)
    play_script(again)
    assert again.asked == [] and check_run(path) == []


def test_a_run_that_is_copied_elsewhere_goes_on_there(tmp_path, sums):
    def gives_out(policy: str, text: str, k: int) -> str:
        if policy == "round-1":
            raise RuntimeError("no more")
        return right(policy, text, k)

    run = scripted_run(tmp_path, sums, gives_out, rounds=2, samples_per_prompt=2, name="run")
    with pytest.raises(RuntimeError, match="no more"):
        play_script(run)
    there = tmp_path / "there"
    shutil.copytree(tmp_path / "model", there / "model")
    shutil.copytree(run.ledger.path, there / "runs" / "moved")
    shutil.rmtree(run.ledger.path)
    run.ledger.path = there / "runs" / "moved"
    again = resumed(run, right)
    play_script(again)
    assert {policy for policy, _ in again.asked} == {"round-1", "round-2"}
    assert check_run(run.ledger.path) == []
    written = [p for p in run.ledger.path.rglob("*.json*") if p.is_file()]
    assert [p for p in written if str(tmp_path / "runs") in p.read_text()] == []
