"""Follows a sandboxed process to its end: output, time, memory, files; and ends it if it must."""

import contextlib
import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BEAT = 0.05
"""Seconds between two looks at memory and files."""
FILES = 20_000
"""Most files in /tmp: each takes kernel memory that no other limit counts."""
LAST = 5.0
"""Seconds that ended processes get to let go of their pipes."""

End = Literal["exit", "timeout", "memory", "output", "files"]

_RESIDENT = re.compile(r"^Rss(?:Anon|Shmem):\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that the parent holds: seconds, and bytes of memory, of output and of /tmp."""

    seconds: float
    memory: int
    output: int
    disk: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sandboxed program ended and what it wrote."""

    end: End
    """`exit`: by itself. Otherwise the limit that it was ended for."""
    status: int | None
    """Exit status where it ended by itself."""
    stdout: bytes
    stderr: bytes
    seconds: float


def watch(process: subprocess.Popen[bytes], bounds: Bounds) -> Outcome:
    """Wait for bubblewrap, which has pipes for stdout and stderr, within bounds.

    Killing it ends its process namespace, and with it all that was started inside.
    """
    started = time.monotonic()
    end: End | None = None
    with process, _Pipes(process) as pipes:
        try:
            while end is None:
                left = started + bounds.seconds - time.monotonic()
                pipes.read(min(BEAT, max(0.0, left)))
                if pipes.written > bounds.output:
                    end = "output"
                elif process.poll() is not None:
                    end = "exit"
                elif left <= 0:
                    end = "timeout"
                else:
                    end = _excess(process.pid, bounds)
        finally:
            process.kill()
        pipes.drain(bounds.output)
    status = process.returncode if end == "exit" else None
    if pipes.written > bounds.output:
        end, status = "output", None
    out, err = (bytes(text[: bounds.output]) for text in pipes.text.values())
    return Outcome(end, status, out, err, time.monotonic() - started)


class _Pipes:
    """Standard output and error of a process, read without ever waiting for more."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout and process.stderr
        self.text = {pipe.fileno(): bytearray() for pipe in (process.stdout, process.stderr)}
        self._open = set(self.text)
        self._selector = selectors.DefaultSelector()
        self._ended = os.pidfd_open(process.pid)
        self._selector.register(self._ended, selectors.EVENT_READ)
        for pipe in self.text:
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ)

    def __enter__(self) -> "_Pipes":
        return self

    def __exit__(self, *error: object) -> None:
        self._selector.close()
        os.close(self._ended)

    @property
    def written(self) -> int:
        """Bytes read so far."""
        return sum(map(len, self.text.values()))

    def read(self, timeout: float) -> None:
        """Take what comes within `timeout` seconds; returns early if the process ends."""
        for key, _ in self._selector.select(timeout):
            if key.fd == self._ended:
                continue
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(key.fd, 65_536)
                self.text[key.fd] += chunk
                if not chunk:
                    self._selector.unregister(key.fd)
                    self._open.discard(key.fd)

    def drain(self, limit: int) -> None:
        """Read until no process holds the pipes any more, or more than `limit` bytes are there."""
        deadline = time.monotonic() + LAST
        self._selector.unregister(self._ended)
        while self._open and self.written <= limit and time.monotonic() < deadline:
            self.read(BEAT)


def _excess(pid: int, bounds: Bounds) -> End | None:
    """What the processes below `pid` have too much of."""
    resident = 0
    for process in _descendants(pid):
        with contextlib.suppress(OSError):
            resident += 1024 * sum(
                map(int, _RESIDENT.findall(Path(f"/proc/{process}/status").read_text()))
            )
            files = os.statvfs(f"/proc/{process}/root/tmp")
            # While bubblewrap sets up, /tmp may still be another file system.
            is_ours = files.f_blocks * files.f_frsize == bounds.disk
            if is_ours and files.f_files - files.f_ffree > FILES:
                return "files"
    return "memory" if resident > bounds.memory else None


def _descendants(pid: int) -> Iterator[int]:
    todo = [pid]
    while todo:
        folder = f"/proc/{todo.pop()}/task"
        with contextlib.suppress(OSError):
            for thread in os.listdir(folder):
                found = Path(folder, thread, "children").read_text().split()
                yield from map(int, found)
                todo += map(int, found)
