"""Weights that nobody needs are let go, and whatever reads the run copes with that."""

import json
from pathlib import Path

import pytest

from selfkd.errors import UsageError
from selfkd.launch import fork_run
from selfkd.metrics import round_rows
from selfkd.policies import Policies
from selfkd.repair import check_run
from selfkd.retention import TOMBSTONE, KeepOptions, prune, surplus
from selfkd.viewer.lineage import policies
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts


@pytest.mark.parametrize(
    ("keep", "needed", "gone"),
    [
        ({}, [], []),
        ({"last": 2}, [], [1, 2, 3, 4, 5]),
        ({"last": 1}, [3], [1, 2, 4, 5, 6]),
        ({"last": 1, "every": 3}, [2], [1, 4, 5]),
        ({"last": 9}, [], []),
    ],
)
def test_the_last_ones_every_nth_and_the_needed_stay(keep, needed, gone):
    assert surplus(range(1, 8), KeepOptions.model_validate(keep), needed) == gone


def test_a_number_alone_is_the_last_ones():
    assert KeepOptions.model_validate(3) == KeepOptions.model_validate({"last": 3})
    for wrong in (0, True, {"last": 0}, {"newest": 1}):
        with pytest.raises(ValueError, match=r"KeepOptions"):
            KeepOptions.model_validate(wrong)


def answer(policy: str, text: str, k: int) -> str:
    """Right, except that greedy answers to the held-out sum get worse after the second policy."""
    a, b = map(int, text.rstrip("=").split("+"))
    return str(a + b if b != 50 or policy in ("base", "round-1", "round-2") else 0)


def pruned_run(folder: Path, **settings: object) -> ScriptedRun:
    """Five rounds that keep the newest policy; `round-2` is the best on held-out."""
    train = write_prompts(folder / "train.jsonl", [(1, 2), (12, 34)])
    heldout = write_prompts(folder / "heldout.jsonl", [(i, 50) for i in range(3)])
    prompts = {"source": str(train), "heldout_source": str(heldout), "fresh": False}
    settings = {"keep_policies": 1, "gate": {"mode": "off"}, "name": "run"} | settings
    run = scripted_run(
        folder, train, answer, prompts=prompts, rounds=5, samples_per_prompt=1, **settings
    )
    play_script(run)
    return run


def weights(run: Path) -> list[str]:
    """Policies whose weights are there."""
    return sorted(p.parent.name for p in run.glob("policies/*/model.safetensors"))


def test_a_run_keeps_the_newest_and_the_best_and_records_the_rest(tmp_path):
    run = pruned_run(tmp_path)
    path = run.ledger.path
    assert weights(path) == ["round-002", "round-005"]
    stone = json.loads((path / "policies" / "round-003" / TOMBSTONE).read_text())
    assert (stone["policy"], stone["bytes"]) == ("round-3", sum(stone_sizes(path, "round-003")))
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    told = [e["policy"] for e in events if e["event"] == "policy_pruned"]
    assert told == ["round-1", "round-3", "round-4"]
    assert check_run(path) == []
    assert {p["policy"]: p["pruned"] for p in policies(path)} == {
        "base": False, "round-1": True, "round-2": False, "round-3": True, "round-4": True,
        "round-5": False,
    }  # fmt: skip
    assert [r["policy"] for r in round_rows(path)][-1] == "round-5"


def stone_sizes(run: Path, name: str) -> list[int]:
    manifest = json.loads((run / "policies" / name / "MANIFEST.json").read_text())
    return [entry["bytes"] for entry in manifest["files"].values()]


def test_a_pruned_run_is_replayed_and_extended_without_the_weights(tmp_path):
    run = pruned_run(tmp_path)
    again = resumed(run, answer)
    play_script(again)
    assert again.asked == [] and again.jobs == []
    again = resumed(run, answer)
    again.options = again.options.model_copy(update={"rounds": 6})
    play_script(again)
    assert [j.start_path for j in again.jobs] == [str(tmp_path / "model")]
    assert {policy for policy, _ in again.asked} == {"round-6"}
    assert weights(run.ledger.path) == ["round-002", "round-006"]


def test_weights_that_are_needed_after_all_name_the_training_that_makes_them(tmp_path):
    run = pruned_run(tmp_path)
    kept = Policies(run.ledger, tmp_path / "model")
    assert kept.get("round-3").fingerprint and kept.get("round-2").path.exists()
    with pytest.raises(UsageError, match=r"weights of round-3 were let go.*--round 2"):
        _ = kept.get("round-3").path


def test_a_fork_that_would_need_pruned_weights_is_refused(tmp_path):
    path = pruned_run(tmp_path).ledger.path
    with pytest.raises(UsageError, match=r"samples from round-3.*earlier round \(0, 2\)"):
        fork_run(path, 3, None)
    assert not list(path.parent.glob("*fork*"))
    forked = fork_run(path, 2, None, ["samples_per_prompt=2"])
    assert weights(forked) == ["round-002"]


def test_damage_behind_pruned_weights_goes_back_to_the_training_that_makes_them(tmp_path):
    run = pruned_run(tmp_path)
    path = run.ledger.path
    before = {p.name: p.read_bytes() for p in path.glob("rounds/00[34]/*-generate/*.parquet")}
    shard = next(path.glob("rounds/004/*-generate/00000.parquet"))
    shard.write_bytes(b"rot")
    found = check_run(path, repair=True)
    assert {p.path for p in found if p.place} >= {"policies/round-004"}
    again = resumed(run, answer)
    play_script(again)
    # Round 3 trained it; what was recorded before that stands.
    assert [Path(j.out_dir).name for j in again.jobs] == [".tmp-round-4", ".tmp-round-5"]
    assert "round-3" not in {policy for policy, _ in again.asked}
    assert check_run(path) == [] and weights(path) == ["round-002", "round-005"]
    assert shard.read_bytes() == before["00000.parquet"]


def test_what_a_crash_left_of_pruned_weights_is_harmless_and_goes_away(tmp_path):
    run = pruned_run(tmp_path)
    path = run.ledger.path
    left = path / "policies" / "round-001" / "model.safetensors"
    left.write_bytes(b"weights")
    (problem,) = check_run(path)
    assert problem.harmless and problem.path == "policies/round-001/model.safetensors"
    prune(run.ledger, KeepOptions.model_validate({}), [])
    assert check_run(path) == [] and not left.exists()
    left.write_bytes(b"weights")
    assert [p.done for p in check_run(path, repair=True)] == ["removed"]
    assert check_run(path) == [] and (left.parent / TOMBSTONE).exists()


def test_what_an_adapter_is_merged_into_stays(tmp_path):
    run = pruned_run(tmp_path, keep_policies={})
    path = run.ledger.path
    for number, start in ((5, "round-3"), (3, "round-1")):
        folder = path / "policies" / f"round-{number:03d}"
        (folder / "adapter_config.json").write_text("{}")
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        (folder / "MANIFEST.json").write_text(json.dumps(manifest | {"start": start}))
    assert prune(run.ledger, KeepOptions.model_validate(1), ["round-5"]) == ["round-2", "round-4"]
    assert weights(path) == ["round-001", "round-003", "round-005"]
