"""Stops a run in order on the first signal, at once on the second."""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from selfkd.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


SHARD = 30.0
"""Seconds that a shard in the making may take once a stop was asked for."""


class EndOfRun(Exception):
    """Raised to end a loop early but in order; `reason` is recorded."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SampledOnce(Stopped):
    """The run went as far as it can without training; it can be resumed."""


class Patient:
    """A check that lets a stop wait a while, so that what is being made can be finished."""

    def __init__(self, check: Callable[[], None], seconds: float = SHARD) -> None:
        self._check = check
        self._seconds = seconds
        self._asked: float | None = None

    def __call__(self) -> None:
        """Raise Stopped if a stop was asked for so many seconds ago."""
        try:
            self._check()
        except Stopped:
            now = time.monotonic()
            self._asked = now if self._asked is None else self._asked
            if now - self._asked > self._seconds:
                raise


class StopSignals:
    """Within it, a first SIGINT, SIGTERM or SIGHUP asks for a stop and a second ends the process.

    What is committed stays; Ray's processes end with this one.
    """

    def __init__(self) -> None:
        self.requested = ""

    def __enter__(self) -> "StopSignals":
        self._former = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if a stop was asked for."""
        if self.requested:
            raise Stopped(f"stopped by {self.requested}; everything up to here is recorded")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            sys.stderr.write("stopped at once\n")
            sys.stderr.flush()
            os._exit(Stopped.exit_code)
        self.requested = signal.Signals(number).name
        sys.stderr.write(
            f"\n{self.requested}: stopping once the shard in the making is recorded "
            f"(at most {SHARD:.0f} s); once more stops at once\n"
        )
