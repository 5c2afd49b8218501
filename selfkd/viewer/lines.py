"""What curves are made of: one metric of one run over rounds."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfkd.errors import UsageError
from selfkd.terminal import one_line
from selfkd.yamlfile import flatten

TITLES = {
    "reward_mean": "reward of samples",
    "heldout_reward": "held-out reward",
    "accept_rate": "accepted",
    "coverage": "coverage",
    "scored_share": "scored",
    "length_mean": "tokens a completion",
    "distinct_2": "distinct token pairs",
    "unique": "unique completions",
    "kl_base": "KL to the base",
    "kl_previous": "KL to the policy before",
}

Document = dict[str, Any]
"""What `metrics.curves_document` returns."""


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one run: the rounds where it is known, and its values there."""

    label: str
    rounds: list[int]
    values: list[float]


def lines_of(documents: Sequence[Document], metrics: Sequence[str]) -> list[Line]:
    """A line for each metric of each run that has at least one value."""
    lines = []
    for document in documents:
        for metric in metrics:
            rows = [flat_row(r) for r in document["rounds"]]
            rows = [r for r in rows if r.get(metric) is not None]
            title = TITLES.get(metric, metric)
            label = f"{document['run']}: {title}" if len(documents) > 1 else title
            values = [float(r[metric]) for r in rows]
            if values:
                lines.append(Line(one_line(label), [r["round"] for r in rows], values))
    return lines


def check_metrics(documents: Sequence[Document], metrics: Sequence[str]) -> list[str]:
    """`metrics`, each once. Raises UsageError for one that no round has as a number.

    A key inside of another is named with a dot: `pass_at_k.8`, `seconds.train`.
    """
    rows = [flat_row(row) for document in documents for row in document["rounds"]]
    known = {key for row in rows for key, value in row.items() if is_number(value)} - {"round"}
    for metric in metrics:
        if metric not in known and rows:
            listed = ", ".join(sorted(known))
            raise UsageError(
                f"no round has a number {metric!r}", where="--metric", remedy=f"there are: {listed}"
            )
    return list(dict.fromkeys(metrics))


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A round's figures with inner ones beside the others: `seconds.train`, `dropped.duplicate`."""
    return {key: value for key, value in flatten(row).items() if value != {}}


def is_number(value: Any) -> bool:
    """Whether a figure can be drawn; true and false are no numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def curves_csv(documents: Sequence[Document], metrics: Sequence[str] = ()) -> str:
    """One line a round with `run`, `round` and the metrics asked for, or all; null is empty."""
    rows = [
        {"run": document["run"], **flat_row(row)}
        for document in documents
        for row in document["rounds"]
    ]
    keys = dict.fromkeys(("run", "round", *(metrics or (key for row in rows for key in row))))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(keys), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
