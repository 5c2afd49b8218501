"""A run copied to a store as it goes on: whole there at any moment, and resumable from there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import InfrastructureError, UsageError
from selfkd.mirror import Mirror, fetch_run
from selfkd.viewer.commands import find_run
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts


def right(policy: str, text: str, k: int) -> str:
    return str(eval(text[:-1]))


@pytest.fixture
def run(tmp_path: Path) -> ScriptedRun:
    sums = write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34)])
    return scripted_run(tmp_path, sums, right, name="a", rounds=2, samples_per_prompt=2)


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_stored_run_is_resumed_elsewhere(run: ScriptedRun, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    with Mirror(store, run.ledger.path):
        play_script(run)
    runs = run.ledger.path.parent
    shutil.rmtree(run.ledger.path)
    assert find_run(Path(f"{store}/a"), runs) == runs / "a"
    assert contents(runs / "a") == contents(tmp_path / "store" / "a")
    again = resumed(run, right)
    play_script(again)
    assert again.asked == [] and again.jobs == []


def test_what_is_removed_here_is_removed_there_and_nothing_is_copied_twice(
    run: ScriptedRun, tmp_path: Path
) -> None:
    play_script(run)
    store = tmp_path / "store"
    for _ in range(2):
        with Mirror(f"file://{store}", run.ledger.path):
            pass
    shard = next((store / "a").rglob("*.parquet"))
    before = shard.stat().st_mtime_ns
    shutil.rmtree(run.ledger.path / "policies" / "round-001")
    with (run.ledger.path / "events.jsonl").open("a") as file:
        file.write("{}\n")
    with Mirror(f"file://{store}", run.ledger.path):
        pass
    assert contents(store / "a") == contents(run.ledger.path)
    assert shard.stat().st_mtime_ns == before


def test_manifests_follow_what_they_name(
    run: ScriptedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_script(run)
    copied: list[str] = []
    monkeypatch.setattr(Mirror, "_copy", lambda self, name: copied.append(name))
    with Mirror(f"file://{tmp_path}/store", run.ledger.path):
        pass
    once = copied[: copied.index("run.yaml") + 1]  # the end of a run copies again
    shards = [i for i, name in enumerate(once) if name.endswith(".parquet")]
    manifests = [i for i, name in enumerate(once) if name.lower().endswith("manifest.json")]
    assert max(shards) < min(manifests) and len(manifests) > 10
    assert once[-3:] == ["events.jsonl", "metrics.jsonl", "run.yaml"]


def test_a_store_that_fails_does_not_hold_the_run_up_and_is_told(
    run: ScriptedRun, tmp_path: Path
) -> None:
    blocked = tmp_path / "store"
    with (
        pytest.raises(InfrastructureError, match="is behind") as caught,
        Mirror(f"file://{blocked}", run.ledger.path),
    ):
        shutil.rmtree(blocked)
        blocked.write_text("not a folder")
        play_script(run)
    assert "whole on this machine" in caught.value.remedy
    assert (run.ledger.path / "policies" / "round-002" / "MANIFEST.json").exists()


def test_a_folder_that_is_renamed_while_it_is_listed_ends_nothing(
    run: ScriptedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_script(run)
    passing = run.ledger.path / "rounds" / "passing"
    passing.mkdir()
    scandir = os.scandir

    def racing(path: str) -> Any:
        if str(path) == str(passing):
            passing.rename(passing.with_name("settled"))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", racing)
    with Mirror(f"file://{tmp_path}/store", run.ledger.path):
        pass
    assert passing.with_name("settled").is_dir()
    assert contents(tmp_path / "store" / "a") == contents(run.ledger.path)


def test_weights_are_copied_in_blocks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("x")
    with (run / "model.safetensors").open("wb") as file:
        file.truncate(2**29)  # a hole, read as zeros
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom selfkd.mirror import Mirror, "
        "fetch_run\nkept = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "import pyarrow.fs\nbefore = kept()\n"
        "with Mirror(sys.argv[1], Path(sys.argv[2])):\n    pass\n"
        "fetch_run(sys.argv[1] + '/run', Path(sys.argv[3]))\nprint(kept() - before)"
    )
    arguments = [f"file://{tmp_path}/store", str(run), str(tmp_path / "here")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "run" / "model.safetensors").stat().st_size == 2**29
    assert int(done.stdout) < 2**18  # KiB: half of the file


def test_a_place_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        fetch_run(f"file://{tmp_path}/nothing", tmp_path)
    with pytest.raises(UsageError, match="cannot use nonsense://x/a as storage"):
        Mirror("nonsense://x", tmp_path / "a").__enter__()


def test_an_s3_store_holds_a_run(run: ScriptedRun, tmp_path: Path, s3: str) -> None:
    with Mirror(s3, run.ledger.path):
        play_script(run)
    head, _, options = s3.partition("?")
    fetched = fetch_run(f"{head}/a?{options}", tmp_path / "elsewhere")
    assert contents(fetched) == contents(run.ledger.path)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket on a server of this process that speaks S3."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import urllib.request

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    host, port = server.get_host_and_port()
    request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
    urllib.request.urlopen(request).close()
    yield f"s3://bucket/runs?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()
