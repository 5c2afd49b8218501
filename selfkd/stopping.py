"""Stops a run in order on the first signal, at once on the second."""

import os
import signal
import sys
from types import FrameType, TracebackType

from selfkd.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        sys.stderr.write(f"\n{self.requested}: stopping in order; once more stops at once\n")
