"""A training that comes to nothing: the policy before it stays, and the run says why.

The trainer is the real one, in this process; the sampler is scripted.
"""

import io
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import Diverged, InfrastructureError
from selfkd.liveview import RichReporter
from selfkd.metrics import curves_document, round_rows
from selfkd.progress import PlainReporter
from selfkd.repair import check_run
from selfkd.rundir import read_lines
from selfkd.training.actor import LocalTrainer
from selfkd.training.base import TrainJob, TrainReport
from tests.fakes import ScriptedRun, Silent, play_script, resumed, scripted_run
from tests.test_progress import ANSI, Terminal
from tests.testbed.addition import write_prompts
from tests.testbed.charmodel import train_base


class TrainingRun(ScriptedRun):
    """A scripted run that really trains."""

    def train(self, job: TrainJob, follow: Callable[[dict[str, Any]], None]) -> TrainReport:
        self.jobs.append(job)
        return LocalTrainer().train(job)


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.ScriptedRun", TrainingRun)


def right(policy: str, text: str, k: int) -> str:
    return str(eval(text[:-1]))


def open_run(folder: Path, **settings: Any) -> ScriptedRun:
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        train_base(folder / "model", lambda: [("1+2=", "3")] * 2, steps=1, seed=0)
    prompts = write_prompts(folder / "train.jsonl", [(1, 2), (12, 34)])
    train = {"learning_rate": 1e30, "batch_size": 2, "epochs": 3, "dtype": "float32"}
    return scripted_run(
        folder, prompts, right,
        **{"rounds": 2, "samples_per_prompt": 1, "train": train} | settings,
    )  # fmt: skip


def test_a_training_that_diverges_stops_the_run_and_commits_nothing(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(Diverged, match=r"loss is nan|not finite|norm is") as caught:
        play_script(run)
    assert caught.value.exit_code == 4 and "learning_rate" in caught.value.remedy
    assert not list(run.ledger.path.glob("policies/round-*"))
    assert not list(run.ledger.path.glob("rounds/000/*-train/manifest.json"))


def test_a_gradient_that_leaps_ends_a_training_whose_config_says_so(tmp_path):
    steady = {"learning_rate": 1e-4, "batch_size": 2, "epochs": 1, "dtype": "float32"}
    run = open_run(tmp_path, rounds=1, name="calm", train={**steady, "grad_norm_limit": 1e3})
    play_script(run)
    (norm, *_) = _norms(run.ledger.path)
    run = open_run(tmp_path, rounds=1, name="leap", train={**steady, "grad_norm_limit": norm / 2})
    with pytest.raises(Diverged, match=r"norm is .* beyond train.grad_norm_limit"):
        play_script(run)
    assert not list(run.ledger.path.glob("policies/round-*"))


def _norms(run: Path) -> list[float]:
    (log,) = run.glob("rounds/000/*-train/log.jsonl")
    return [line["grad_norm"] for line in read_lines(log)]


def test_or_the_run_goes_on_with_the_policy_it_had(tmp_path):
    run = open_run(tmp_path, on_bad_training="continue")
    play_script(run)
    assert [policy for policy, _ in run.asked] == ["base"] * 6
    assert not list(run.ledger.path.glob("policies/round-*"))
    for number in range(2):
        (manifest,) = run.ledger.path.glob(f"rounds/{number:03d}/*-train/manifest.json")
        summary = json.loads(manifest.read_text())["summary"]
        assert summary["policy"] == "base" and "learning_rate" in summary["diverged"]
    assert [r["policy"] for r in round_rows(run.ledger.path)] == ["base"] * 3
    assert [p for p in check_run(run.ledger.path) if not p.harmless] == []


def test_and_says_why_on_the_screen_and_in_its_records(tmp_path, monkeypatch):
    run = open_run(tmp_path, on_bad_training="continue", rounds=1)
    play_script(run)
    first, last = curves_document(run.ledger.path)["rounds"]
    why = first["train"]["diverged"]
    assert "at step" in why and "learning_rate" in why and last["train"] is None
    said = f"the training of round 0 diverged, base stays: {why}"
    events = read_lines(run.ledger.path / "events.jsonl")
    told = [(e["level"], e["text"]) for e in events if e["event"] == "message"]
    assert told == [("warning", said)]

    monkeypatch.setenv("COLUMNS", "120")
    plain, live = io.StringIO(), Terminal()
    with PlainReporter(plain) as lines, RichReporter(live) as screen:
        assert isinstance(run.reporter, Silent)
        for name, fields in run.reporter.events:
            lines.event(name, **fields)
            screen.event(name, **fields)
    assert f"warning: {said}" in plain.getvalue()
    assert "train: diverged, base stays" in plain.getvalue()
    table = ANSI.sub("", live.getvalue()).split("held-out")[-1]
    assert re.search(r"^ *0 +base .* 2! ", table, re.MULTILINE)
    assert "round 0: the training diverged (!)" in table


def test_a_disk_that_does_not_take_the_policy_is_told_and_a_resume_trains_again(tmp_path):
    settings = {"rounds": 1, "train": {"learning_rate": 1e-4, "dtype": "float32"}, "name": "run"}
    run = open_run(tmp_path, **settings)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        with pytest.raises(InfrastructureError, match=r"cannot write: .*(too large|os error 27)"):
            play_script(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert not list(run.ledger.path.glob("policies/round-*"))
    play_script(resumed(run, right))
    assert check_run(run.ledger.path) == []
    assert (run.ledger.path / "policies" / "round-001" / "model.safetensors").exists()
