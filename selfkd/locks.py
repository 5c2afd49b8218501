"""One process works on a run at a time, and runs on one machine know of each other."""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
from pathlib import Path
from types import TracebackType

from selfkd.errors import LockHeld
from selfkd.files import disk_error
from selfkd.ledger import now


class RunLock:
    """An advisory lock on `RUN/lock`; the kernel drops it with the process that held it.

    `stale` is the record of a former holder that died without releasing it, or None.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock"
        self.stale: dict[str, object] | None = None

    def __enter__(self) -> "RunLock":
        try:
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._file.seek(0)
        holder = self._file.read()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise self._held(holder) from None
        self.stale = _read(holder) if holder.strip() else None
        try:
            self._write({"pid": os.getpid(), "host": socket.gethostname(), "time": now()})
        except OSError as error:
            self._close()
            raise disk_error(error, self.path) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write(None)
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # closing tries once more to write what did not fit
            self._file.close()

    def _write(self, holder: dict[str, object] | None) -> None:
        self._file.truncate(0)
        if holder:
            self._file.write(json.dumps(holder))
        self._file.flush()

    def _held(self, holder: str) -> LockHeld:
        who = _read(holder)
        return LockHeld(
            f"process {who.get('pid', '?')} on {who.get('host', '?')} works on this run",
            where=str(self.path.parent),
            remedy="wait for it to end, or stop it",
        )


def _read(holder: str) -> dict[str, object]:
    """What a lock file says of its holder; nothing where its writing was cut off."""
    with contextlib.suppress(ValueError):
        return json.loads(holder)
    return {}


class Presence:
    """Held by every run of a user on a machine; `others` is whether one was there before."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or Path(tempfile.gettempdir())) / f"selfkd-{os.getuid()}.busy"
        self._fd = -1
        self.others = False

    def __enter__(self) -> "Presence":
        with contextlib.suppress(OSError):  # where there can be no such file, nobody is told
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.others = True
            fcntl.flock(self._fd, fcntl.LOCK_SH)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
