"""The live view on a terminal: what runs now as bars, one row a finished round, what to look at.

The screen holds a table that grows, alarms and gate decisions below it, and the bars of the current
step at the bottom; messages scroll away above. Narrow terminals lose columns, never their shape.
"""

import os
import time
from typing import IO, TextIO, cast

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from selfkd.board import Board, Fields, Meter, clock_text, notice
from selfkd.progress import Clock
from selfkd.roundtable import Column, diverged, fitting, title_of
from selfkd.terminal import SafeStream, one_line, shows_unicode, visible

ASCII_HEAD = Box(("    \n" * 2 + " -- \n" + "    \n" * 5), ascii=True)
"""SIMPLE_HEAD without Unicode."""
LOUD = {"warning": "yellow", "error": "bold red", "critical": "bold yellow"}
BLOCKS = " ▏▎▍▌▋▊▉█"


class RichReporter:
    """Draws a run on a terminal. Used in a `with` statement; leaves the final table behind."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        self._console = Console(
            file=cast("IO[str]", SafeStream(stream)),
            highlight=False,
            markup=False,
            emoji=False,
            # NO_COLOR alone would leave bold and dim text.
            color_system=None if "NO_COLOR" in os.environ else "auto",
        )
        self._unicode = shows_unicode(stream)
        self._clock = clock
        self._phase_since = clock()
        self._notes: list[Text] = []
        self._spinner = Spinner("dots" if self._unicode else "line", style="cyan")
        self.board = Board()
        self._live = Live(
            console=self._console,
            get_renderable=self._screen,
            refresh_per_second=4,
            transient=True,
        )

    def __enter__(self) -> "RichReporter":
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()
        if self.board.rows:
            self._console.print(self._table(None))
        for note in self._notes:
            self._console.print(note)

    def event(self, name: str, /, **fields: object) -> None:
        """Take in one event; the screen follows a quarter of a second later at most."""
        self.board.apply(name, fields, self._clock())
        if name in {"step_started", "step_finished"}:
            self._phase_since = self._clock()
        elif name == "run_started":
            self._header(fields)
        elif name in {"alarm", "gate"}:
            self._notes = [*self._notes, _note(name, fields)]
        elif name == "round_row":
            self._notes = [*self._notes, *_refusal(fields)]
        elif name == "message":
            style = LOUD.get(str(fields.get("level")), "dim")
            self._console.print(Text(visible(notice(name, fields)), style=style))
        elif text := notice(name, fields):
            self._notes = [*self._notes, Text(visible(text), style="bold")]

    def _header(self, fields: Fields) -> None:
        dot = " · " if self._unicode else " - "
        rounds = f"{fields['rounds']} rounds{', resumed' if fields.get('resumed') else ''}"
        facts = (f"judge {fields['judge']}", fields["engine"], rounds)
        first = Text(f"{fields['name']}  ", style="bold cyan")
        first.append(f"{fields['loop']} on {fields['model']}", style="bold default")
        rest = Text(dot.join(map(str, facts)))
        lines = [first, rest, Text(f"in {fields['path']}", style="dim")]
        if len(first) + len(dot) + len(rest) <= self._console.width:
            lines[:2] = [Text.assemble(first, dot, rest)]
        for line in lines:
            self._console.print(line, no_wrap=True, overflow="ellipsis", crop=True)

    # -- drawing, by the thread that refreshes the screen -----------------------------------------

    def _screen(self) -> RenderableType:
        bars = self._bars()
        room = self._console.height - bars.row_count - 2
        notes = self._newest_notes(room - 5)
        table = []
        if self.board.rows:
            room -= 3 + sum(self._lines(note) for note in notes)
            table = [self._table(max(2, room))]
        return Group(*table, *notes, Text(), bars)

    def _newest_notes(self, room: int) -> list[Text]:
        """The last notes that fit into `room` lines."""
        shown: list[Text] = []
        for note in reversed(self._notes):
            room -= self._lines(note)
            if room < 0:
                break
            shown.insert(0, note)
        return shown

    def _lines(self, note: Text) -> int:
        return len(note.wrap(self._console, self._console.width))

    def _table(self, room: int | None) -> Table:
        """The rounds; with little `room` the base and the last ones."""
        rows = [self.board.rows[n] for n in sorted(self.board.rows)]
        columns = fitting(self._console.width)
        table = Table(
            box=SIMPLE_HEAD if self._unicode else ASCII_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
        )
        for column in columns:
            title = title_of(column, rows[-1])
            justify = "left" if column.key in {"policy", "bar"} else "right"
            table.add_column(
                title, justify=justify, width=column.width, no_wrap=True, overflow="crop"
            )
        skipped = max(0, len(rows) - room) if room is not None else 0
        for number, row in enumerate(rows):
            if number == 0 or number > skipped:
                table.add_row(*(self._cell(column, row, rows) for column in columns))
        return table

    def _cell(self, column: Column, row: Fields, rows: list[Fields]) -> Text:
        if column.key == "bar":
            return Text(self._reward_bar(row, rows, column.width), style="cyan")
        text = Text(column.cell(row, self.board.base_heldout))
        if column.key == "heldout" and " " in text.plain:
            value, change = text.plain.split(" ")
            style = "red" if change.startswith("-") else "green"
            return Text.assemble(value, " ", (change, style))
        if column.key == "kept" and diverged(row):
            text.stylize("red")
        if column.key in {"round", "policy", "samples", "time"}:
            text.stylize("dim")
        return text

    def _reward_bar(self, row: Fields, rows: list[Fields], width: int) -> str:
        known = [r["reward_mean"] for r in rows if r["reward_mean"] is not None]
        if row["reward_mean"] is None:
            return ""
        low, high = min([0.0, *known]), max([1.0, *known])
        eighths = round((row["reward_mean"] - low) / (high - low) * width * 8)
        if not self._unicode:
            return "#" * (eighths // 8)
        return (BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8]).rstrip()

    def _bars(self) -> Table:
        now = self._clock()
        width = self._console.width
        grid = Table.grid(padding=(0, 2, 0, 0))
        meters = shown_meters(list(self.board.meters.values()))
        if not meters:
            self._spinner.update(text=Text(f"working  {clock_text(now - self._phase_since)}"))
            grid.add_row(self._spinner)
            return grid
        for meter in meters:
            grid.add_row(*self._bar(meter, now, width))
        return grid

    def _bar(self, meter: Meter, now: float, width: int) -> list[RenderableType]:
        place = self.board.place(meter.round)
        name = Text(
            f"{place}  " if width >= 60 else f"{place.removeprefix('round ')} ", no_wrap=True
        )
        name.append(meter.name, style="bold")
        eta = meter.eta(now)
        time_left = f"ETA {clock_text(eta)}" if eta else clock_text(now - meter.started)
        cells: list[RenderableType] = [name]
        if width >= 72:
            total = meter.total if meter.total else None
            cells.append(
                ProgressBar(
                    total=total,
                    completed=meter.done,
                    width=min(40, width - 62),
                    pulse=not meter.told,
                    animation_time=now,
                )
            )
        cells.append(Text(meter.count() or "starting", no_wrap=True, justify="right"))
        if width >= 50:
            cells.append(Text(meter.fact(), no_wrap=True, style="cyan"))
        cells.append(Text(time_left, no_wrap=True, style="dim"))
        return cells


def shown_meters(meters: list[Meter]) -> list[Meter]:
    """The steps worth a bar: sampling, judging and training, else whatever is open."""
    long = [m for m in meters if m.verb in {"generate", "judge", "train"}]
    return long or meters[-1:]


def _refusal(fields: Fields) -> list[Text]:
    """What the mark in a round's row is about, where its training was refused."""
    if not (reason := diverged(fields["row"])):
        return []
    text = f"round {fields['row']['round']}: the training diverged (!): {reason}"
    return [Text(one_line(text), style="red")]


def _note(name: str, fields: Fields) -> Text:
    if name == "gate":
        style = "red" if fields["decision"] == "rolled_back" else "green"
    else:
        style = LOUD.get(fields["level"], "yellow")
    return Text(one_line(notice(name, fields)), style=style)
