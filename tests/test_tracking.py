"""Figures sent to trackers: the right ones, each once, and never at the cost of the run."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfkd import reporting, tracking
from selfkd.config import resolve
from selfkd.errors import InfrastructureError, LockHeld, UsageError
from selfkd.ledger import Ledger
from selfkd.locks import RunLock
from selfkd.metrics import round_rows
from selfkd.reporting import Reports
from selfkd.tracking import export
from tests.fakes import Silent
from tests.synthetic import generate, judge, keep, make_samples, measure, new_run, prompts

LOG = [{"step": s, "total_steps": 2, "loss": 2.0 / s, "grad_norm": 1.0} for s in (1, 2)]


def play_round(ledger: Ledger, number: int) -> None:
    """A whole round: held-out, samples, verdicts, decisions, a training of two steps."""
    measure(ledger, number, [1.0, 0.0, 1.0])
    samples = make_samples(number, [(p, [5, 6, 0]) for p in prompts(2) for _ in range(2)])
    generate(ledger, number, samples)
    judge(ledger, number, samples, [1.0, 0.0, 0.0, float(number)])
    keep(ledger, number, samples, [None, "below 0.7: low", "incorrect", None])
    step = ledger.step(number, "train", "", {})
    (step.path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    step.finish({"policy": f"round-{number + 1}", "steps": 2, "examples": 2})
    ledger.step(number, "round", "", {}).finish({})


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_every_number_of_the_record(tmp_path):
    ledger = new_run(tmp_path / "run")
    play_round(ledger, 0)
    play_round(ledger, 1)
    assert export(ledger.path, "tensorboard") == 6
    found, rows = scalars(ledger.path), round_rows(ledger.path)
    for key in ("reward_mean", "heldout_reward", "unique", "accept_rate"):
        assert found[f"round/{key}"] == [(r["round"], pytest.approx(r[key])) for r in rows], key
    assert found["round/pass_at_k/2"] == [(r["round"], r["pass_at_k"]["2"]) for r in rows]
    assert found["round/dropped/below 0/7_ low"] == [(0, 1.0), (1, 1.0)]
    assert found["train/loss"] == [(1, 2.0), (2, 1.0), (3, 2.0), (4, 1.0)]  # over all rounds
    assert "round/policy" not in found and "train/step" not in found


def test_each_figure_is_sent_once_and_again_begins_anew(tmp_path):
    ledger = new_run(tmp_path / "run")
    play_round(ledger, 0)
    measure(ledger, 1, [1.0])  # an open round is not sent
    assert export(ledger.path, "tensorboard") == 3
    assert export(ledger.path, "tensorboard") == 0
    ledger = Ledger(tmp_path / "more")
    new_run(tmp_path / "more")
    play_round(ledger, 0)
    export(ledger.path, "tensorboard")
    play_round(ledger, 1)
    assert export(ledger.path, "tensorboard") == 3
    assert [step for step, _ in scalars(ledger.path)["round/reward_mean"]] == [0, 1]
    assert export(ledger.path, "tensorboard", again=True) == 6
    assert [step for step, _ in scalars(ledger.path)["round/reward_mean"]] == [0, 1]


def test_two_processes_never_send_the_same_run(tmp_path):
    ledger = new_run(tmp_path / "run")
    play_round(ledger, 0)
    first = tracking._State(ledger.path, "tensorboard", again=False)
    first.claim()
    with pytest.raises(LockHeld, match="another process"):
        export(ledger.path, "tensorboard")
    del first
    assert export(ledger.path, "tensorboard") == 3


def test_wandb_keeps_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds for its process to start
    ledger = new_run(tmp_path / "run")
    play_round(ledger, 0)
    assert export(ledger.path, "wandb") == 3
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # its own process writes it, when it comes to it
    while b"round/heldout_reward" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert b"round/heldout_reward" in file.read_bytes() and b"train/loss" in file.read_bytes()
    assert json.loads((ledger.path / "tracking" / "wandb.json").read_text())["id"] in file.name


def test_mlflow_has_every_round_and_the_config(tmp_path, monkeypatch):
    mlflow: Any = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    ledger = new_run(tmp_path / "run", note="")
    play_round(ledger, 0)
    export(ledger.path, "mlflow")
    play_round(ledger, 1)
    export(ledger.path, "mlflow")
    state = json.loads((ledger.path / "tracking" / "mlflow.json").read_text())
    history = mlflow.MlflowClient().get_metric_history(state["id"], "round/heldout_reward")
    assert [(m.step, round(m.value, 3)) for m in history] == [(0, 0.667), (1, 0.667)]
    assert mlflow.get_run(state["id"]).data.params["judge"] == "number"


def test_trackio_goes_on_with_a_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    ledger = new_run(tmp_path / "run")
    play_round(ledger, 0)
    assert export(ledger.path, "trackio") == 3
    play_round(ledger, 1)
    assert export(ledger.path, "trackio") == 3


def test_what_is_missing_or_unknown_is_told(tmp_path, monkeypatch):
    ledger = new_run(tmp_path / "run")
    monkeypatch.setattr(tracking, "installed", lambda name: False)
    with pytest.raises(UsageError, match="not installed — pip install mlflow-skinny"):
        export(ledger.path, "mlflow")
    with pytest.raises(UsageError, match="not a run directory"):
        export(tmp_path, "tensorboard")


def test_a_tracker_that_fails_is_named_and_the_rest_is_sent_later(tmp_path, monkeypatch):
    ledger = new_run(tmp_path / "run")
    play_round(ledger, 0)
    play_round(ledger, 1)
    real = tracking.TensorBoard.log

    def fail(self: Any, point: Any) -> None:
        if point.number == 1:
            raise RuntimeError("disk\nis gone")
        real(self, point)

    monkeypatch.setattr(tracking.TensorBoard, "log", fail)
    with pytest.raises(InfrastructureError, match="tensorboard failed: disk is gone"):
        export(ledger.path, "tensorboard")
    monkeypatch.setattr(tracking.TensorBoard, "log", real)
    assert export(ledger.path, "tensorboard") == 3
    assert [step for step, _ in scalars(ledger.path)["train/loss"]] == [1, 2, 3, 4]


# -- while a run goes on --------------------------------------------------------------------------


def test_a_running_run_is_followed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "PATIENCE", 120.0)
    ledger, told = new_run(tmp_path / "run"), Silent()
    with Reports(ledger.path, ["tensorboard"], told) as reports, RunLock(ledger.path):
        reports.start()
        play_round(ledger, 0)
        reports.check()
        ledger.event("run_finished", seconds=1.0, reason="")
    assert told.events == []
    assert scalars(ledger.path)["round/reward_mean"] == [(0, 0.25)]


def with_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Makes `import wandb` mean `code`, also in processes that are started."""
    folder.mkdir()
    (folder / "wandb.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


@pytest.mark.parametrize(
    ("code", "patience", "said"),
    [
        ("raise RuntimeError('not logged in')", 60.0, "wandb failed: not logged in"),
        ("import time; time.sleep(600)", 1.0, "wandb did not catch up in time"),
    ],
)
def test_a_tracker_that_fails_or_hangs_is_told_once_and_left_behind(
    tmp_path, monkeypatch, code, patience, said
):
    with_wandb(tmp_path / "lib", monkeypatch, code)
    monkeypatch.setattr(reporting, "PATIENCE", patience)
    ledger, told = new_run(tmp_path / "run"), Silent()
    with Reports(ledger.path, ["wandb"], told) as reports, RunLock(ledger.path):
        reports.start()
        (child,) = reports._running.values()
        play_round(ledger, 0)
    ((name, fields),) = told.events
    assert name == "message" and fields["level"] == "warning"
    assert said in fields["text"] and f"selfkd export {ledger.path} --to wandb" in fields["text"]
    assert child.poll() is not None  # nothing is left running


def test_a_tracker_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "installed", lambda name: False)
    ledger, told = new_run(tmp_path / "run"), Silent()
    with Reports(ledger.path, ["mlflow"], told) as reports:
        reports.start()
    ((_, fields),) = told.events
    assert "pip install mlflow-skinny" in fields["text"]


def test_report_to_is_one_several_or_nobody():
    base = {"loop": "rest_em", "model": "m", "prompts": "p.jsonl", "judge": "number"}
    read = [resolve({**base, **more}).config.report_to for more in (
        {}, {"report_to": "wandb"}, {"report_to": ["wandb", "mlflow"]}, {"report_to": []},
    )]  # fmt: skip
    assert read == [None, ["wandb"], ["wandb", "mlflow"], []]
    assert tracking.wanted(None) == ["tensorboard"] and tracking.wanted([]) == []
    with pytest.raises(UsageError, match="report_to"):
        resolve({**base, "report_to": "tensorbord"})
