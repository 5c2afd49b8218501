"""A kill, a full disk and a write-protected one at every write of a run: see `tests/faults.py`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import Mount, mounted
from tests.testbed.beds import by_testbed_only

ROOT = Path(__file__).resolve().parents[1]

Rows = list[dict[str, Any]]


def explore(folder: Path, every: int, *, megabytes: int) -> Rows:
    """The rows of `tests.faults`; those of `kill` alone where nothing may be mounted."""
    command = [sys.executable, "-m", "tests.faults", str(folder), str(every)]
    command = mounted([Mount(folder, f"size={megabytes}m")], command) or command
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Faults at some of the writes; their number has no common factor with what repeats."""
    return explore(tmp_path_factory.mktemp("faults"), 17, megabytes=24)


def of_kind(rows: Rows, kind: str) -> Rows:
    found = [row for row in rows if row["kind"] == kind]
    if not found and kind != "kill":
        pytest.skip("this user may not mount a file system (unshare --mount)")
    return found


def whole(row: dict[str, Any]) -> bool:
    """Whether the run went on to the same end, and changed nothing that it had recorded."""
    assert (row["resumed"], row["why"]) == (0, ""), row
    return not (row["changed"] or row["differs"] or row["problems"])


def test_a_kill_before_any_write_loses_nothing(rows):
    kills = of_kind(rows, "kill")
    assert len(kills) > 10
    assert [row for row in kills if not whole(row)] == []


def test_a_disk_that_gets_full_is_told_and_a_resume_goes_on(rows):
    filled = of_kind(rows, "full")
    assert len(filled) > 10
    *failed, last = filled
    assert last["code"] == 0  # there was no write left to fail
    for row in failed:
        assert row["code"] == 5, row["said"]
        assert "the disk is full" in row["said"] and "MB free" in row["said"]
        assert "/runs/run/" in row["said"]
    assert [row for row in filled if not whole(row)] == []


def test_a_write_protected_run_is_refused_before_anything_starts(rows):
    (row,) = of_kind(rows, "read-only")
    assert (row["code"], row["started"]) == (5, [])
    assert "Read-only file system" in row["said"] and "/runs/run/lock" in row["said"]


@by_testbed_only
def test_a_fault_at_each_single_write(tmp_path):
    found = explore(tmp_path, 1, megabytes=500)
    assert len(found) > 400
    assert [row for row in found if row["kind"] != "read-only" and not whole(row)] == []
