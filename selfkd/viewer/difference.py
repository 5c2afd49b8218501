"""A comparison of runs as text for a terminal."""

import json
from typing import Any

from selfkd.terminal import one_line
from selfkd.viewer.listing import align
from selfkd.viewer.plots import terminal_curves

Row = dict[str, Any]

COLUMNS = {
    "run": "run",
    "state": "state",
    "loop": "loop",
    "model": "model",
    "judge": "judge",
    "round": "round",
    "reward_mean": "reward",
    "heldout_reward": "held-out",
    "unique": "distinct",
    "length_mean": "tokens",
}
"""Key -> title; the figures are the last known."""


def render_comparison(found: Row, *, color: bool = True) -> str:
    """What `compare_runs` found: runs, held-out curves and differences, and config."""
    runs = found["runs"]
    table = [list(COLUMNS.values()), *(_cells(run) for run in runs)]
    differ = [["key", *(one_line(r["run"]) for r in runs)]]
    differ += [[key, *map(_value, values)] for key, values in found["config"].items()]
    measured = any(r.get("heldout_reward") is not None for run in runs for r in run["rounds"])
    metric = "heldout_reward" if measured else "reward_mean"
    parts = [
        align(table),
        terminal_curves(runs, [metric], color=color),
        "\n".join(
            _sentence(d, runs[0], run) for d, run in zip(found["heldout"], runs[1:], strict=True)
        ),
        align(differ) if found["config"] else "the same config",
    ]
    return "\n\n".join(parts)


def _cells(run: Row) -> list[str]:
    rounds = run["rounds"]
    cells = []
    for key in COLUMNS:
        last = next((r[key] for r in reversed(rounds) if r.get(key) is not None), None)
        value = run.get(key, last)
        cells.append("-" if value is None else _value(value))
    return cells


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return one_line(text)[:60]


def _sentence(found: Row, first: Row, other: Row) -> str:
    names = f"{one_line(other['run'])} against {one_line(first['run'])}"
    if not found["prompts"]:
        return f"{names}: no held-out prompt was answered by both"
    low, high = found["low"], found["high"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    return (
        f"{names}: held-out {found['delta']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} "
        f"(paired bootstrap, {found['prompts']} prompts): {verdict}"
    )
