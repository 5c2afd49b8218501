"""Curves over rounds, in the terminal; `save_figure` draws them into a file."""

import math
import shutil
import sys
from collections.abc import Sequence

from selfkd.terminal import shows_unicode
from selfkd.viewer.figure import save_figure
from selfkd.viewer.lines import Document, Line, lines_of

__all__ = ["save_figure", "terminal_curves"]

_COLORS = ("cyan", "orange", "magenta", "green", "red", "blue")
_MARKS = "●◆▲■○◇"
_ASCII_MARKS = "ox+*#@"
_ASCII = str.maketrans("┌┐└┘├┤┬┴┼─│", "+++++++++-|")


def terminal_curves(
    documents: Sequence[Document],
    metrics: Sequence[str] = ("reward_mean", "heldout_reward"),
    width: int | None = None,
    *,
    color: bool = True,
    unicode: bool | None = None,
) -> str:
    """Metrics over rounds as text, `width` columns wide (default: the terminal's, at most 100).

    Each line has its own mark, so that it can be told apart without colour. `unicode` defaults to
    what stdout can show.
    """
    if unicode is None:
        unicode = shows_unicode(sys.stdout)
    lines = lines_of(documents, metrics)
    if not lines:
        return "nothing to draw yet: no round has been judged"
    width = max(20, width or min(100, shutil.get_terminal_size().columns))
    marks = _MARKS if unicode else _ASCII_MARKS
    chart = _chart(lines, width, marks, color=color, unicode=unicode)
    legend = [
        _legend(line, number, marks, width, color, unicode) for number, line in enumerate(lines)
    ]
    text = "\n".join([*chart.splitlines(), *legend])
    return text if unicode else text.translate(_ASCII)


def _chart(lines: Sequence[Line], width: int, marks: str, *, color: bool, unicode: bool) -> str:
    import plotext

    # Without this, plotext cuts figures down to what it takes for the terminal's size.
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless").plot_size(width, max(10, min(20, width // 4)))
    for number, line in enumerate(lines):
        pen = _COLORS[number % len(_COLORS)]
        path = plotext.marker("braille" if unicode else ".", pen)
        point = plotext.marker(marks[number % len(marks)], pen)
        if len(line.rounds) > 1:
            figure.draw(figure.signal(line.rounds, line.values, marker=path).lines())
        figure.draw(figure.signal(line.rounds, line.values, marker=point))
    rounds = sorted({r for line in lines for r in line.rounds})
    whole = _whole_ticks(rounds[0], rounds[-1], max(2, width // 8))
    figure.ruler("x").ticks(whole, [str(t) for t in whole])
    figure.ruler("x").lim(rounds[0] - 0.2, max(rounds[-1], rounds[0] + 1) + 0.2)
    ticks = _value_ticks([v for line in lines for v in line.values])
    figure.ruler("y").ticks(ticks, [f"{t:g}" for t in ticks])
    figure.ruler("y").lim(ticks[0], ticks[-1])
    figure.label("round", "x")
    return figure.build().string(not color)


def _whole_ticks(first: int, last: int, most: int) -> list[int]:
    """Rounds from `first` to `last`, at most `most` of them and evenly spaced."""
    step = 1
    while (last - first) // step + 1 > most:
        step += 1
    return list(range(first, last + 1, step))


def _value_ticks(values: Sequence[float]) -> list[float]:
    """A few round numbers that enclose zero and all `values`."""
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span))
    step *= next(f for f in (0.2, 0.5, 1.0, 2.0) if span / (f * step) <= 7)
    below, above = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(n * step, 12) for n in range(below, above + 1)]


def _legend(line: Line, number: int, marks: str, width: int, color: bool, unicode: bool) -> str:
    arrow = "→" if unicode else "->"
    first, last = line.values[0], line.values[-1]
    change = f"{first:.3f} {arrow} {last:.3f}" if len(line.values) > 1 else f"{first:.3f}"
    mark = marks[number % len(marks)]
    text = f"{line.label}  {change}"[: width - 4]
    if not color:
        return f"  {mark} {text}"
    from plotext import colorize

    return f"  {colorize(mark, _COLORS[number % len(_COLORS)]).string()} {text}"
