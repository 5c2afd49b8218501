"""Runs on a machine whose home, temporary folder or shared memory is not what Ray expects."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from selfkd.cluster import Cluster
from selfkd.errors import InfrastructureError
from tests.chaos.check import wrong
from tests.chaos.world import World, tiny_world
from tests.mounts import Mount, mounted

pytestmark = pytest.mark.lengthy

HOARDER = '''\
"""Content with everything; fills Ray's object store, and keeps what it put there."""

import numpy as np
import ray

from content import content

HOARD = []


def hoarder(sample):
    if not HOARD:
        HOARD.extend(ray.put(np.full(25 * 2**20, i, np.uint8)) for i in range(12))
    return content(sample)
'''


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A user's folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    world = tiny_world(folder, prompts=8, heldout=4, rounds=1, samples=2, kept=2)
    (folder / "hoarder.py").write_text(HOARDER)
    return world


def selfkd(
    folder: Path, mounts: list[Mount], *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`selfkd ARGUMENTS` in a folder, with file systems of its own."""
    changed = [f"{name}={value}" for name, value in environment.items()]
    command = mounted(mounts, ["env", *changed, sys.executable, "-m", "selfkd", *arguments])
    if not command:
        pytest.skip("this user may not mount a file system (unshare --mount)")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_no_home_little_shared_memory_and_a_full_object_store_are_no_hindrance(world, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    mounts = [Mount(home, "ro"), Mount(Path("/dev/shm"), "size=64m")]
    done = selfkd(
        world.folder, mounts, "run", "run.yaml", "judge=hoarder.py:hoarder", "--name", "cramped",
        *world.overrides, HOME=str(home),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(wrong(world.folder / "runs" / "cramped", world)) == []


def test_a_full_temporary_folder_is_named_at_once_and_loses_nothing(world):
    arguments = ["run", "run.yaml", "--name", "full", *world.overrides]
    with tempfile.TemporaryDirectory(dir="/tmp") as full:  # short enough for sockets
        done = selfkd(world.folder, [Mount(Path(full), "size=1m")], *arguments, TMPDIR=full)
    assert done.returncode == 5
    assert f"{full}: No space left on device" in done.stderr and "RAY_TMPDIR" in done.stderr
    assert "selfkd resume runs/full" in done.stderr
    events = (world.folder / "runs" / "full" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events][-1] == "run_failed"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_with_a_long_path_is_refused(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / ("long" * 20)))
    with pytest.raises(InfrastructureError, match="too long a path") as caught:
        Cluster("local", timeout=60).__enter__()
    assert "set RAY_TMPDIR to a shorter one" in caught.value.remedy
    assert not (tmp_path / ("long" * 20)).exists()
