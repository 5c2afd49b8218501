"""The runs of a folder at a glance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfkd.errors import DataError
from selfkd.rundir import read_lines, round_numbers, run_facts
from selfkd.terminal import one_line

Row = dict[str, Any]

COLUMNS = {
    "run": "run",
    "loop": "loop",
    "model": "model",
    "judge": "judge",
    "round": "round",
    "state": "state",
    "reward_mean": "reward",
    "heldout_reward": "held-out",
}
"""Key -> title."""


def list_runs(folder: Path) -> list[Row]:
    """The runs directly in `folder`, oldest first; none where there is no such folder.

    Keys: run (its name), path, loop, model, judge, planned_rounds, created, state (running,
    finished, stopped, failed, or damaged where the run's own files cannot be read), round (the
    newest), and the last known reward_mean and heldout_reward.
    """
    paths = [p.parent for p in folder.glob("*/run.yaml") if not p.parent.name.startswith(".")]
    rows = [_list_run(path) for path in sorted(paths)]
    return sorted(rows, key=lambda row: (str(row["created"] or ""), row["run"]))


def _list_run(path: Path) -> Row:
    # One damaged run must not hide the others; `selfkd doctor` says what is wrong with it.
    try:
        facts = run_facts(path)
        rounds = read_lines(path / "metrics.jsonl")
    except DataError:
        keys = ("loop", "model", "judge", "planned_rounds", "created")
        facts = {"run": path.name, "path": str(path), **dict.fromkeys(keys), "state": "damaged"}
        rounds = []
    return facts | {
        "round": max(round_numbers(path), default=None),
        "reward_mean": _last(rounds, "reward_mean"),
        "heldout_reward": _last(rounds, "heldout_reward"),
    }


def _last(rounds: Sequence[Row], key: str) -> float | None:
    return next((r[key] for r in reversed(rounds) if r.get(key) is not None), None)


def render_runs(rows: Sequence[Row]) -> str:
    """The listing as aligned columns."""
    if not rows:
        return "no runs here yet: start one with `selfkd run loops/rest_em.yaml`"
    table = [list(COLUMNS.values()), *([_cell(row, key) for key in COLUMNS] for row in rows)]
    return align(table)


def align(table: Sequence[Sequence[str]]) -> str:
    """Cells as columns, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def _cell(row: Row, key: str) -> str:
    value = row[key]
    if key == "round" and value is not None and row["planned_rounds"]:
        return f"{value}/{row['planned_rounds']}"
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else one_line(str(value))
