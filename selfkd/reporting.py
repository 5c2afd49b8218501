"""Keeps trackers up to date while a run goes on, each in a process of its own.

A tracker may hang, take signals, or die: it is then missed, but the run goes on, and `selfkd
export` sends later what it lacks. What such a process prints is in the run's `tracking/NAME.log`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from selfkd.errors import InfrastructureError, LockHeld
from selfkd.files import make_directory
from selfkd.hardware import installed
from selfkd.progress import Reporter
from selfkd.tracking import TrackerName, package, wanted

PATIENCE = 30.0
"""Seconds that a run which ended well waits for its trackers to catch up."""
SHORT_PATIENCE = 5.0
"""The same for a run that was stopped or failed."""


class Reports:
    """The trackers of a run, for a `with` statement around all that holds the run's lock."""

    def __init__(
        self, run_dir: Path, report_to: Sequence[TrackerName] | None, reporter: Reporter
    ) -> None:
        self._run_dir = run_dir
        self._wanted = wanted(report_to)
        self._reporter = reporter
        self._running: dict[TrackerName, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Reports":
        return self

    def start(self) -> None:
        """Start a process for each tracker that is installed; the run must hold its lock."""
        for name in self._wanted:
            if not installed(name):
                self._warn(f"{name} is not installed, so nothing is sent to it", name, True)
                continue
            try:
                self._running[name] = self._start(name)
            except (OSError, InfrastructureError) as error:
                self._warn(f"{name} cannot be started: {error}", name)

    def _start(self, name: TrackerName) -> subprocess.Popen[bytes]:
        folder = self._run_dir / "tracking"
        make_directory(folder)
        arguments = ("export", str(self._run_dir), "--to", name, "--follow")
        with (folder / f"{name}.log").open("wb") as log:
            # A session of its own: Ctrl-C is for the run, which then says when to end.
            return subprocess.Popen(
                [sys.executable, "-m", "selfkd", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Tell, once, of each tracker that failed."""
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                del self._running[name]
                if process.returncode not in (0, LockHeld.exit_code):
                    self._warn(self._last_words(name), name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end = time.monotonic() + (SHORT_PATIENCE if kind else PATIENCE)
        while self._running and time.monotonic() < end:
            self.check()
            time.sleep(0.05)
        for name, process in self._running.items():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._warn(f"{name} did not catch up in time", name)

    def _last_words(self, name: str) -> str:
        text = (self._run_dir / "tracking" / f"{name}.log").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else f"{name} ended without a word"

    def _warn(self, text: str, name: TrackerName, missing: bool = False) -> None:
        first = f"pip install {package(name)}, then " if missing else ""
        more = f"the run goes on; {first}`selfkd export {self._run_dir} --to {name}` sends the rest"
        self._reporter.event("message", text=f"{text} ({more})", level="warning")
