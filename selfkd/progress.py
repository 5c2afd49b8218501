"""Tells a run's progress: a live view on a terminal, plain lines elsewhere, JSON when asked.

No reporter ever ends a run: what cannot be shown is dropped, because everything is on record.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from selfkd.board import Board, Fields, clock_text
from selfkd.roundtable import COLUMNS, title_of
from selfkd.terminal import DULL, SafeStream, visible

if TYPE_CHECKING:
    from selfkd.liveview import RichReporter

Clock = Callable[[], float]

PLAIN_INTERVAL = 15.0
"""Seconds between two progress lines where nobody watches live."""


class Reporter(Protocol):
    """Is told what happens, in the words of the run's events."""

    def event(self, name: str, /, **fields: Any) -> None:
        """Show one event; never raises for what it cannot show."""
        ...


def make_reporter(
    json_events: bool, stream: TextIO | None = None
) -> "JsonReporter | PlainReporter | RichReporter":
    """A reporter on `stream` (default: stdout), to be used in a `with` statement."""
    out = stream or sys.stdout
    if json_events:
        return JsonReporter(out)
    if out and out.isatty() and os.environ.get("TERM", "") not in DULL:
        from selfkd.liveview import RichReporter

        return RichReporter(out)
    return PlainReporter(out)


class JsonReporter:
    """One JSON object a line, with the event's name under `event`."""

    def __init__(self, stream: TextIO | None) -> None:
        self._out = SafeStream(stream)

    def __enter__(self) -> "JsonReporter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._out.flush()

    def event(self, name: str, /, **fields: Any) -> None:
        """Write the event as one line; numbers that are not finite become null."""
        line = {"event": name, **fields}
        try:
            text = json.dumps(line, default=str, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(line), default=str)
        self._out.write(text + "\n")
        self._out.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


class PlainReporter:
    """Lines for logs and pipes: steps as they end, progress now and then, rounds in columns."""

    def __init__(self, stream: TextIO | None, *, clock: Clock = time.monotonic) -> None:
        self._out = SafeStream(stream)
        self._clock = clock
        self._started = self._spoken = clock()
        self._titled = False
        self.board = Board()

    def __enter__(self) -> "PlainReporter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._out.flush()

    def event(self, name: str, /, **fields: Any) -> None:
        """Write the line or lines of an event, if it has any."""
        now = self._clock()
        self.board.apply(name, fields, now)
        if name == "step_progress":
            if now - self._spoken >= PLAIN_INTERVAL:
                self._say(self.board.line(self.board.meter(fields), now))
        elif name == "round_row":
            self._row(fields["row"])
        elif text := self.board.sentence(name, fields):
            self._say(text)

    def _say(self, text: str) -> None:
        self._spoken = self._clock()
        self._titled = False
        self._out.write(f"{clock_text(self._spoken - self._started):>7}  {visible(text)}\n")
        self._out.flush()

    def _row(self, row: Fields) -> None:
        columns = [c for c in COLUMNS if c.key != "bar"]
        if not self._titled:
            self._titled = True
            titles = (f"{title_of(c, row):>{c.width}}" for c in columns)
            self._out.write("  ".join(titles) + "\n")
        base = self.board.base_heldout
        cells = (f"{c.cell(row, base):>{c.width}}" for c in columns)
        self._out.write("  ".join(cells).rstrip() + "\n")
        self._out.flush()
