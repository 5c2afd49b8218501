"""The commands that look at runs: status, compare, and what curves can write."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfkd.cli import app
from selfkd.errors import UsageError
from selfkd.ledger import Ledger
from selfkd.metrics import round_rows
from selfkd.viewer.difference import render_comparison
from selfkd.viewer.remembered import Remembered
from selfkd.viewer.status import WAIT, render_status, run_status, watch_status
from tests.synthetic import generate, make_samples, measure, new_run, prompts

EXAMPLE = Path(__file__).resolve().parents[1] / "runs" / "example"
LAST = round_rows(EXAMPLE)[-1]
STANDING = f"round 4 of 4, reward {LAST['reward_mean']:.3f}, held-out {LAST['heldout_reward']:.3f}"


def printed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_csv_holds_the_numbers_of_json():
    rows = list(csv.DictReader(io.StringIO(printed("curves", EXAMPLE, "--csv"))))
    document = json.loads(printed("curves", EXAMPLE, "--json"))
    assert [int(r["round"]) for r in rows] == [r["round"] for r in document["rounds"]]
    for row, figures in zip(rows, document["rounds"], strict=True):
        assert float(row["reward_mean"]) == figures["reward_mean"]
        assert float(row["pass_at_k.8"]) == figures["pass_at_k"]["8"]
        assert (row["kept"] == "") == (figures["kept"] is None)


def test_any_number_of_a_round_can_be_drawn_of_several_runs(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "other")
    drawn = printed(
        "curves", EXAMPLE, tmp_path / "other", "--metric", "seconds.train", "--metric", "unique"
    )
    assert "example: seconds.train" in drawn and "other: unique completions" in drawn
    with pytest.raises(UsageError, match=r"no round has a number 'gate.*there are: accept_rate"):
        printed("curves", EXAMPLE, "--metric", "gate.decision")
    with pytest.raises(UsageError, match="exclude each other"):
        printed("curves", EXAMPLE, "--csv", "--json")


def test_an_svg_has_the_axes_and_values_of_the_metric(tmp_path):
    printed("curves", EXAMPLE, "--metric", "length_mean", "--svg", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "tokens a completion" in text and "round (0 is the base model)" in text
    assert text.count("<use") > len(round_rows(EXAMPLE))
    printed("curves", EXAMPLE, "--png", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_status_says_how_a_run_ended_and_what_to_look_at(tmp_path):
    found = run_status(EXAMPLE)
    assert found["state"] == "finished" and found["round"]["round"] == 4
    text = render_status(found)
    assert text.startswith("example: finished, rest_em on SmolLM2-135M-Instruct, judged by number")
    assert STANDING in text
    shutil.copytree(EXAMPLE, tmp_path / "strict")
    with (tmp_path / "strict" / "run.yaml").open("a") as file:
        file.write("alarms: {low_coverage: 0.4}\n")
    alarmed = run_status(tmp_path / "strict")
    assert {"round", "name", "level", "message"} == alarmed["alarms"][0].keys()
    assert "low_coverage" in [alarm["name"] for alarm in alarmed["alarms"]]
    strict = render_status(alarmed)
    assert "warning: round 0: only 34% of the prompts have a kept sample" in strict
    told = json.loads(printed("status", EXAMPLE, "--json"))["round"]
    assert told["heldout_reward"] == LAST["heldout_reward"]


def test_watching_prints_each_change_and_ends_with_the_run(tmp_path, monkeypatch, capsys):
    ledger = Ledger(new_run(tmp_path / "run").path)
    states = iter(["running", "running", "running", "finished"])
    now = ["running"]
    monkeypatch.setattr("selfkd.viewer.live.run_state", lambda *_: now[0])
    monkeypatch.setattr("selfkd.rundir.run_state", lambda *_: now[0])

    def sleep(seconds: float) -> None:
        assert seconds == WAIT
        now[0] = next(states)
        if now[0] == "finished":
            measure(ledger, 0, [1.0, 0.0])
            ledger.event("run_finished", reason="all rounds done")

    monkeypatch.setattr("selfkd.viewer.status.time.sleep", sleep)
    ledger.event("step_started", round=0, step="02-generate", total=8)
    generate(ledger, 0, make_samples(0, [(p, [1, 0]) for p in prompts(4)]), finish=False)
    watch_status(tmp_path / "run")
    text = capsys.readouterr().out
    assert text.count("run: running") == 1  # nothing new is nothing printed
    assert "now: generate 4 of 8" in text and "ended: all rounds done" in text


def test_a_comparison_in_the_terminal_has_figures_curves_and_config(tmp_path):
    measure(new_run(tmp_path / "a", seed=1), 0, [0.0] * 20)
    measure(new_run(tmp_path / "b", seed=2), 0, [1.0] * 20)
    text = printed("compare", tmp_path / "a", tmp_path / "b")
    assert "b against a: held-out +1.000, 95 % interval +1.000 to +1.000" in text
    assert "20 prompts): better" in text
    assert "seed  1  2" in text
    found = json.loads(printed("compare", tmp_path / "a", tmp_path / "b", "--json"))
    assert found["heldout"][0]["delta"] == 1.0
    assert "the same config" in render_comparison(found | {"config": {}}, color=False)


def test_a_report_is_written_by_the_command(tmp_path):
    out = tmp_path / "r.html"
    assert f"written: {out}" in printed("report", EXAMPLE, "-o", out, "--samples", "2")
    assert out.read_text().startswith("<!doctype html>")


def test_what_is_remembered_stays_within_its_size():
    made: list[str] = []
    memory: Remembered[str] = Remembered(10, len)

    def get(key: str, size: int) -> str:
        return memory.get(key, lambda: made.append(key) or "x" * size)  # type: ignore[func-returns-value]

    get("a", 4)
    get("b", 4)
    get("a", 4)
    get("c", 4)  # 12 rows: the one used longest ago, b, goes
    get("a", 4)
    assert made == ["a", "b", "c"]
    assert len(get("large", 50)) == 50  # larger than all: kept alone
    get("large", 50)
    assert made == ["a", "b", "c", "large"]


def test_on_a_terminal_the_status_is_drawn_in_place(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    watch_status(EXAMPLE)
    assert STANDING in sys.stdout.getvalue()  # type: ignore[attr-defined]
