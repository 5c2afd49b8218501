"""One process works on a run at a time, and a dead one's lock is taken over."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from selfkd.errors import InfrastructureError, LockHeld
from selfkd.locks import Presence, RunLock

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom selfkd.locks import Presence, RunLock\n"
    "with RunLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_the_second_process_is_told_who_holds_it_and_a_killed_holder_is_taken_over(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(LockHeld, match=f"process {holder.pid} on ") as error, RunLock(tmp_path):
        pass
    assert error.value.exit_code == 6
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path) as lock:
        assert lock.stale is not None and lock.stale["pid"] == holder.pid


def test_an_orderly_release_leaves_nothing_stale(tmp_path):
    with RunLock(tmp_path) as first:
        assert first.stale is None
    with RunLock(tmp_path) as second:
        assert second.stale is None


def test_a_record_that_was_cut_off_is_no_obstacle(tmp_path):
    (tmp_path / "lock").write_text('{"pid": 12')
    with RunLock(tmp_path) as lock:
        assert lock.stale == {}
        (tmp_path / "lock").write_text('{"pid"')
        with pytest.raises(LockHeld, match=r"process \? on \?"), RunLock(tmp_path):
            pass


def test_a_full_disk_is_named_and_the_lock_let_go(tmp_path, monkeypatch):
    def full(self: RunLock, holder: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunLock, "_write", full)
        with pytest.raises(InfrastructureError, match="the disk is full") as error:
            RunLock(tmp_path).__enter__()
    assert error.value.exit_code == 5
    with RunLock(tmp_path) as lock:
        assert lock.stale is None


def test_runs_on_one_machine_know_of_each_other(tmp_path):
    with Presence(tmp_path) as first, Presence(tmp_path) as second, Presence(tmp_path) as third:
        assert [p.others for p in (first, second, third)] == [False, True, True]
    with Presence(tmp_path) as again:
        assert not again.others
    with Presence(tmp_path / "missing") as nowhere:
        assert not nowhere.others
