"""What curves are made of: one metric of one run over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfkd.terminal import one_line

TITLES = {
    "reward_mean": "reward of samples",
    "heldout_reward": "held-out reward",
    "accept_rate": "accepted",
    "coverage": "coverage",
    "length_mean": "tokens a completion",
    "distinct_2": "distinct token pairs",
    "unique": "unique completions",
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
            rows = [r for r in document["rounds"] if r.get(metric) is not None]
            title = TITLES.get(metric, metric)
            label = f"{document['run']}: {title}" if len(documents) > 1 else title
            values = [float(r[metric]) for r in rows]
            if values:
                lines.append(Line(one_line(label), [r["round"] for r in rows], values))
    return lines
