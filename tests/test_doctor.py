"""Damage to a run is found, named and moved aside with all that was made from it."""

import json
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml

from selfkd.doctor import _failing_import, checks, diagnose
from selfkd.errors import DataError, LockHeld, UsageError
from selfkd.ledger import Ledger
from selfkd.locks import RunLock
from selfkd.policies import Policies
from selfkd.repair import check_run
from selfkd.rundir import STATES
from selfkd.training.recall import leave

EXAMPLE = Path(__file__).parents[1] / "runs" / "example"


def make_run(path: Path, rounds: int = 3, parent: dict[str, object] | None = None) -> Path:
    """A finished run: each round generates two shards, judges them, and trains a policy."""
    path.mkdir(parents=True)
    (path / "run.yaml").write_text(yaml.safe_dump({"run": {"schema": 1, "parent": parent}}))
    base = path.parent / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    ledger = Ledger(path)
    policies = Policies(ledger, base)
    ledger.event("run_started")
    for number in range(rounds):
        for verb in ("generate", "judge", "train"):
            play(ledger, policies, number, verb)
        ledger.event("round_finished", round=number)
    (path / "metrics.jsonl").write_text('{"round": 0}\n')
    return path


def play(ledger: Ledger, policies: Policies, number: int, verb: str) -> None:
    step = ledger.step(number, verb, "", {"n": 2})
    if step.finished:
        return
    for shard in range(2):
        if not step.has(shard):
            step.write(shard, pa.table({"x": [number, shard]}))
    summary: dict[str, object] = {}
    if verb == "train":
        name = f"round-{number + 1}"
        if policies.committed(name, step.fingerprint) is None:
            (policies.staging(name) / "model.safetensors").write_bytes(b"weights")
            policies.commit(name, step.fingerprint, {}, [])
        summary = {"policy": name}
    step.finish(summary)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def present(run: Path) -> set[str]:
    """Steps and policies that are there, by path relative to the run."""
    found = [*run.glob("rounds/*/*"), *run.glob("policies/*")]
    return {p.relative_to(run).as_posix() for p in found}


def test_a_whole_run_has_no_problem(tmp_path):
    run = make_run(tmp_path / "run")
    assert check_run(run) == []
    text, healthy = diagnose(run)
    assert healthy and "as recorded" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run\.yaml"):
        check_run(tmp_path)


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink])
def test_a_damaged_shard_takes_along_what_was_made_after_it(tmp_path, damage):
    run = make_run(tmp_path / "run")
    kept = (run / "rounds/001/01-generate/00000.parquet").read_bytes()
    damage(run / "rounds/001/01-generate/00001.parquet")

    text, healthy = diagnose(run)
    assert not healthy and "rounds/001/01-generate/00001.parquet" in text
    assert "--repair" in text
    assert "rounds/002/03-train" in present(run), "looking changes nothing"

    text, healthy = diagnose(run, repair=True)
    assert healthy
    for name in ("01-generate/00001", "rounds/001/02-judge", "rounds/002", "policies/round-003"):
        assert name in text
    assert present(run) == {
        *(f"rounds/000/{name}" for name in ("01-generate", "02-judge", "03-train")),
        "rounds/001/01-generate",
        "policies/round-001",
    }
    assert not (run / "metrics.jsonl").exists()
    moved = next(run.glob("quarantine/*"))
    assert (moved / "rounds/002/03-train/manifest.json").exists()
    assert (moved / "policies/round-003/MANIFEST.json").exists()

    step = Ledger(run).step(1, "generate", "", {"n": 2})
    assert not step.finished and step.shards() == [0]
    assert step.shard_path(0).read_bytes() == kept


def test_damaged_states_of_a_teacher_take_nothing_along(tmp_path):
    run = make_run(tmp_path / "run")
    file = run / "rounds" / "001" / "03-train" / STATES
    leave(file, {"a": torch.ones(100, 8)}, torch.float32, 8)
    assert check_run(run) == []
    flip_a_bit(file)
    (found,) = check_run(run)
    assert found.path.endswith(STATES) and "not readable" in found.what
    (found,) = check_run(run, repair=True)
    assert found.done.startswith("moved to quarantine") and not file.exists()
    assert check_run(run) == []


def test_a_repaired_run_can_be_finished_again(tmp_path):
    run = make_run(tmp_path / "run")
    before = present(run)
    flip_a_bit(run / "rounds/000/02-judge/00000.parquet")
    check_run(run, repair=True)
    ledger = Ledger(run)
    policies = Policies(ledger, tmp_path / "base")
    for number in range(3):
        for verb in ("generate", "judge", "train"):
            play(ledger, policies, number, verb)
    assert present(run) == before and check_run(run) == []


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink])
def test_a_damaged_policy_is_trained_again_from_the_same_examples(tmp_path, damage):
    run = make_run(tmp_path / "run")
    damage(run / "policies/round-002/model.safetensors")
    assert [p.path for p in check_run(run) if p.place] == ["policies/round-002"]
    check_run(run, repair=True)
    assert "policies/round-001" in present(run)
    assert not {"policies/round-002", "policies/round-003", "rounds/002"} & present(run)
    step = Ledger(run)
    for verb, finished in (("generate", True), ("judge", True), ("train", False)):
        assert step.step(1, verb, "", {"n": 2}).finished is finished
    assert (run / "rounds/001/03-train/00000.parquet").exists()


def test_a_missing_policy_and_a_step_without_its_record_are_noticed(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "policies/round-003").rename(tmp_path / "away")
    (run / "rounds/002/03-train/step.json").write_text("garbage")
    found = {p.path for p in check_run(run)}
    assert {"policies/round-003", "rounds/002/03-train/step.json"} <= found
    check_run(run, repair=True)
    assert check_run(run) == [] and not (run / "rounds/002/03-train").exists()


def test_a_run_copied_without_weights_is_whole(tmp_path):
    run = make_run(tmp_path / "run")
    for weights in run.glob("policies/*/*.safetensors"):
        weights.unlink()
    (problem,) = check_run(run)
    assert problem.note and not problem.place and "no weights" in problem.what
    shutil.rmtree(run / "policies")
    text, healthy = diagnose(run)
    assert healthy and "note" in text and "BAD" not in text
    assert check_run(EXAMPLE)[0].note and len(check_run(EXAMPLE)) == 1
    assert next(p.path for p in check_run(run, repair=True) if p.place) == "policies/round-001"


def test_a_shard_nobody_recorded_is_noticed(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    source = run / "rounds/000/02-judge/00000.parquet"
    (source.parent / "00007.parquet").write_bytes(source.read_bytes())
    assert [p.what for p in check_run(run) if "00007" in p.path] == ["not in the manifest"]


def test_garbage_amid_the_events_is_dropped_and_kept_aside(tmp_path):
    run = make_run(tmp_path / "run")
    events = run / "events.jsonl"
    lines = events.read_text().splitlines()
    events.write_text("\n".join([lines[0], "garbage", *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="doctor"):
        Ledger(run)
    assert [(p.path, p.what) for p in check_run(run)] == [
        ("events.jsonl", "line 2 is not a record")
    ]
    before = present(run)
    check_run(run, repair=True)
    assert present(run) == before
    recorded = [json.loads(line) for line in events.read_text().splitlines()]
    assert [r["event"] for r in recorded[:-1]] == [json.loads(line)["event"] for line in lines]
    assert "repaired" in recorded[-1]["text"]
    assert "garbage" in next(run.glob("quarantine/*/events.jsonl")).read_text()


def test_leftovers_of_a_crash_are_harmless_and_can_be_swept(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    with (run / "events.jsonl").open("a") as file:
        file.write('{"seq": 9, "ev')
    (run / "policies/.tmp-round-2").mkdir()
    (run / "rounds/000/01-generate/.tmp-1-00002.parquet").write_bytes(b"half")
    text, healthy = diagnose(run)
    assert healthy and text.count("note") == 3
    assert all(p.done for p in check_run(run, repair=True))
    assert check_run(run) == []


def test_a_run_in_progress_is_not_repaired(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    flip_a_bit(run / "rounds/000/02-judge/00000.parquet")
    with RunLock(run), pytest.raises(LockHeld):
        check_run(run, repair=True)
    assert check_run(run)


def test_rounds_shared_with_a_parent_are_not_made_again_here(tmp_path):
    run = make_run(tmp_path / "run", parent={"run": "first", "round": 2})
    flip_a_bit(run / "rounds/001/02-judge/00000.parquet")
    before = present(run)
    with pytest.raises(DataError, match="shares it with first"):
        check_run(run, repair=True)
    assert present(run) == before


def test_the_report_on_a_run_as_json(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    (run / "rounds/000/02-judge/manifest.json").write_text("{}")
    text, healthy = diagnose(run, as_json=True)
    report = json.loads(text)
    assert report["healthy"] is healthy is False
    assert report["problems"][0] == {
        "path": "rounds/000/02-judge/manifest.json",
        "what": "not a manifest",
        "harmless": False,
        "note": False,
        "done": "",
    }


def test_an_import_that_fails_or_dies_is_put_down_to_its_module(tmp_path, monkeypatch):
    (tmp_path / "raises.py").write_text("raise RuntimeError('operator torchvision::nms')")
    (tmp_path / "dies.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert _failing_import(["json", "raises"]) == {"raises": "operator torchvision::nms"}
    assert _failing_import(["json", "dies", "raises"]) == {"dies": "the process died (status 7)"}


def test_the_machine_is_checked_and_a_dead_cluster_is_named(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    found = {check.name: check for check in checks(runs=tmp_path / "runs")}
    assert not found["ray cluster"].ok and address in found["ray cluster"].detail
    assert "--local" in found["ray cluster"].remedy
    assert not found["socket paths"].ok
    assert all(found[name].ok for name in ("python", "torch", "imports", "disk for runs", "home"))
    assert not (tmp_path / "runs").exists()
