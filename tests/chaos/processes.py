"""The processes of a run: its driver, and whatever that and Ray have started for it."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
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
        "transformers.models.llama.modeling_llama",
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


def session(leader: int, mark: str = "") -> Iterator[tuple[int, str]]:
    """Pid and command line of each live process of a session, or that has the mark.

    Ray's processes stay in the session; what starts one of its own still has the mark.
    """
    wanted = f"{MARK}={mark}\0".encode()
    for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
        try:
            place = Path(f"/proc/{pid}")
            text = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            ours = os.getsid(pid) == leader
            ours = ours or (bool(mark) and wanted in (place / "environ").read_bytes())
        except OSError:
            continue
        if text and ours:  # a zombie has no command line
            yield pid, text


def gone(found: Callable[[], Iterator[tuple[int, str]]], seconds: float = 10) -> list[str]:
    """Wait until nothing is found any more; what still is after so many seconds."""
    deadline = time.monotonic() + seconds
    while left := [text for _, text in found()]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


class WarmRay:
    """A Ray cluster on this machine that outlives the drivers which join it."""

    def __init__(self) -> None:
        fresh = multiprocessing.get_context("spawn")  # it needs little of what drivers import
        ours, theirs = fresh.Pipe()
        self._process = fresh.Process(target=_keep, args=(theirs,))
        self._process.start()
        self._pipe = ours
        self.address: str = ours.recv()

    def close(self) -> None:
        self._pipe.send("end")
        self._process.join(60)

    def actors(self) -> Iterator[tuple[int, str]]:
        """Processes that work for a driver."""
        assert self._process.pid
        titles = [TITLES[role] for role in ("sampler", "trainer", "judge")]
        found = session(self._process.pid)
        return ((pid, text) for pid, text in found if any(t in text for t in titles))


def _keep(pipe: Connection) -> None:
    os.setsid()
    import ray

    from selfkd.cluster import Cluster

    with Cluster("local", timeout=60):
        pipe.send(ray.get_runtime_context().gcs_address)
        pipe.recv()


class Driver:
    """One `selfkd` command with events on stdout, in a process and session of its own."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Runs in `folder`, where `out.txt` and `err.txt` are appended to."""
        self._out = folder / "out.txt"
        self._err = folder / "err.txt"
        for file in (self._out, self._err):
            file.touch()
        self._read = self._out.stat().st_size
        self._quiet = self._err.stat().st_size
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
        return next((pid for pid, text in session(self.pid, self.mark) if title in text), None)

    def leftovers(self, seconds: float = 10) -> list[str]:
        """What is still alive of it that many seconds after its end."""
        return gone(lambda: session(self.pid, self.mark), seconds)

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        return self._err.read_bytes()[self._quiet :].decode()[-3000:]


def _drive(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    for name, fd in (("out.txt", 1), ("err.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), fd)
    sys.argv = ["selfkd", *arguments]
    from selfkd.cli import main

    main()
