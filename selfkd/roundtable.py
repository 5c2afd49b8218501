"""The table of rounds that every view shows: one row a round, columns by importance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from selfkd.board import clock_text
from selfkd.terminal import one_line

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of rounds; of too many, those of the highest rank go first."""

    key: str
    title: str
    width: int
    rank: int
    cell: Callable[[Fields, float | None], str]
    """(round row, held-out reward of the base) -> text."""


def title_of(column: Column, row: Fields) -> str:
    """The column's title, with the k that pass@k has."""
    return f"pass@{_largest_k(row)}" if column.key == "pass" else column.title


def _largest_k(row: Fields) -> str:
    return max(row.get("pass_at_k") or {"k": 0}, key=lambda k: int(k) if k.isdigit() else 0)


def _number(key: str, form: str) -> Callable[[Fields, float | None], str]:
    return lambda row, base: "-" if row.get(key) is None else format(row[key], form)


def _heldout(row: Fields, base: float | None) -> str:
    value = row.get("heldout_reward")
    if value is None:
        return "-"
    return (
        f"{value:.3f} {value - base:+.3f}" if base is not None and row["round"] else f"{value:.3f}"
    )


def _pass(row: Fields, base: float | None) -> str:
    found = row.get("pass_at_k")
    return f"{found[_largest_k(row)]:.3f}" if found else "-"


def diverged(row: Fields) -> str:
    """Why the round's training was refused; empty where none was."""
    return (row.get("train") or {}).get("diverged") or ""


def _kept(row: Fields, base: float | None) -> str:
    """Samples kept, with a mark where they taught nothing."""
    kept = _number("kept", "d")(row, base)
    return f"{kept}!" if diverged(row) else kept


def _time(row: Fields, base: float | None) -> str:
    spent = [s for s in row["seconds"].values() if s is not None]
    return clock_text(sum(spent)) if spent else "-"


COLUMNS = (
    Column("round", "round", 5, 0, _number("round", "d")),
    Column("policy", "policy", 9, 8, lambda row, base: one_line(row.get("policy") or "-")[:9]),
    Column("samples", "samples", 7, 9, _number("samples", "d")),
    Column("reward", "reward", 6, 1, _number("reward_mean", ".3f")),
    Column("bar", "", 10, 10, _number("reward_mean", ".3f")),
    Column("kept", "kept", 5, 3, _kept),
    Column("heldout", "held-out", 12, 2, _heldout),
    Column("pass", "pass@k", 7, 5, _pass),
    Column("length", "length", 6, 6, _number("length_mean", ".1f")),
    Column("unique", "unique", 6, 7, _number("unique", ".0%")),
    Column("time", "time", 5, 4, _time),
)


def fitting(width: int) -> list[Column]:
    """The most important columns that fit side by side into `width` cells, in order."""
    kept: list[Column] = []
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if sum(c.width + 2 for c in [*kept, column]) <= width:
            kept.append(column)
    return [c for c in COLUMNS if c in kept]
