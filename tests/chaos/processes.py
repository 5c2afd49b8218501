"""The processes of a run: its driver, and whatever that and Ray have started for it."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "SELFKD_TEST_RUN"
"""Environment variable by which every process of a driver under test is known."""

FORKS = multiprocessing.get_context("forkserver")
# A driver forked from a process that has imported all this starts at once.
FORKS.set_forkserver_preload(
    [
        "selfkd.cli",
        "selfkd.assembly",
        "selfkd.launch",
        "selfkd.viewer.plots",
        "ray",
        "transformers.models.auto.tokenization_auto",
    ]
)

TITLES = {
    "sampler": "ray::SamplerActor",
    "trainer": "ray::LocalTrainer",
    "judge": "ray::JudgeHost",
    "raylet": "raylet/raylet",
    "gcs": "gcs/gcs_server",
}
"""What the command line of a process holds, by what it does in a run."""


class Driver:
    """One `selfkd` command with events on stdout, in a process and session of its own.

    Ray's processes stay in the session; what starts one of its own still has the mark.
    """

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Runs in `folder`, where `out.txt` and `err.txt` are appended to."""
        self._out = folder / "out.txt"
        self.err = folder / "err.txt"
        self._out.touch()
        self._read = self._out.stat().st_size
        self.mark = f"{folder}/{time.monotonic_ns()}"
        environment = {**(env or {}), MARK: self.mark}
        self.process = FORKS.Process(
            target=_drive, args=([*arguments, "--json"], str(folder), environment)
        )
        self.process.start()
        assert self.process.pid
        self.pid: int = self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""
        return self.process.exitcode

    def events(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        with self._out.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, seen: Callable[[], bool], *, seconds: float = 300) -> None:
        """Wait until something is seen; an AssertionError where the driver ends before."""
        deadline = time.monotonic() + seconds
        while not seen():
            assert self.code is None, f"ended with {self.code}: {self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)

    def end(self, seconds: float = 300) -> int:
        """Wait for the driver to end; its exit code."""
        self.process.join(seconds)
        assert self.code is not None, f"still running after {seconds} s: {self.said()}"
        return self.code

    def find(self, role: str) -> int | None:
        """The process of that role, or None where there is none."""
        if role == "driver":
            return self.pid
        title = TITLES[role]
        return next((pid for pid, text in self.alive() if title in text), None)

    def leftovers(self, seconds: float = 10) -> list[str]:
        """What is still alive of it that many seconds after its end."""
        deadline = time.monotonic() + seconds
        while found := [text for _, text in self.alive()]:
            if time.monotonic() > deadline:
                return found
            time.sleep(0.1)
        return []

    def alive(self) -> Iterator[tuple[int, str]]:
        """Pid and command line of each live process of its session, or that has its mark."""
        mark = f"{MARK}={self.mark}".encode()
        for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
            try:
                place = Path(f"/proc/{pid}")
                text = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                ours = os.getsid(pid) == self.pid or mark in (place / "environ").read_bytes()
            except OSError:
                continue
            if text and ours:  # a zombie has no command line
                yield pid, text

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        return self.err.read_text()[-3000:]


def _drive(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    for name, fd in (("out.txt", 1), ("err.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), fd)
    sys.argv = ["selfkd", *arguments]
    from selfkd.cli import main

    main()
