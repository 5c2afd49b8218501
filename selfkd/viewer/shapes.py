"""What a mean hides: how rewards are spread, how length goes with reward, and trainer curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfkd.records import content_hash
from selfkd.rundir import StepRecord, read_lines, round_numbers, round_steps
from selfkd.signals import scored
from selfkd.viewer.lines import is_number
from selfkd.viewer.remembered import Remembered

Row = dict[str, Any]

QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
BINS = 20
"""Bars of a histogram where rewards are more than a few values."""
FEW = 12
LOG_POINTS = 400
"""Most optimiser steps drawn a round; every n-th of more."""

_SCORED: Remembered[tuple[np.ndarray, np.ndarray]] = Remembered(10_000_000, lambda v: len(v[0]))
"""Rewards and lengths by what they were read from; a sample takes 16 bytes."""


def round_shapes(run_dir: Path) -> list[Row]:
    """One dict a round, of its own samples (steps without a label).

    round, reward ({"mean", "p5", "p25", "p50", "p75", "p95"} or null), histogram ([{"low", "high",
    "count"}], the same bars in every round), by_length ([{"low", "high", "length_mean", "count",
    "reward_mean"}], tokens a completion), log (one dict an optimiser step) and steps (verb, label,
    seconds, tokens and tokens_per_second of each finished step that took time).
    """
    steps = {n: round_steps(run_dir, n) for n in round_numbers(run_dir)}
    known = {n: _scored(found) for n, found in steps.items()}
    edges = reward_edges([rewards for rewards, _ in known.values()])
    return [
        {
            "round": n,
            "reward": _spread(known[n][0]),
            "histogram": _histogram(known[n][0], edges),
            "by_length": _by_length(*known[n]),
            "log": _log(found),
            "steps": [s for s in map(_speed, found) if s],
        }
        for n, found in steps.items()
    ]


def _scored(steps: Sequence[StepRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the scored samples and their lengths in tokens (0 where those are unknown)."""
    made = [s for s in steps if s.verb == "generate" and not s.label]
    judged = [s for s in steps if s.verb == "judge" and not s.label]
    shards = [[str(s.path), *map(str, s.shards())] for s in (*made, *judged)]
    key = content_hash([shards, [s.manifest for s in (*made, *judged)]], 32)
    return _SCORED.get(key, lambda: _read_scored(made, judged))


def _read_scored(
    made: Sequence[StepRecord], judged: Sequence[StepRecord]
) -> tuple[np.ndarray, np.ndarray]:
    _, rewards, lengths = scored(made, judged)
    return rewards, np.nan_to_num(lengths).astype(np.int64)


def reward_edges(rounds: Sequence[np.ndarray]) -> np.ndarray:
    """Edges of the bars that all rounds share: one a value where there are few, else `BINS`."""
    rewards = np.concatenate([np.zeros(0), *rounds])
    if not len(rewards):
        return np.zeros(0)
    values = np.unique(rewards)
    if len(values) == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    if len(values) <= FEW:
        middle = (values[1:] + values[:-1]) / 2
        half = float(np.diff(values).min()) / 2
        return np.concatenate([[values[0] - half], middle, [values[-1] + half]])
    return np.linspace(values[0], values[-1], BINS + 1)


def _histogram(rewards: np.ndarray, edges: np.ndarray) -> list[Row]:
    if not len(rewards):
        return []
    counts, _ = np.histogram(rewards, edges)
    return [
        {"low": float(low), "high": float(high), "count": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _spread(rewards: np.ndarray) -> Row | None:
    if not len(rewards):
        return None
    found = {name: float(np.quantile(rewards, q)) for name, q in QUANTILES.items()}
    return {"mean": float(rewards.mean()), **found}


def _by_length(rewards: np.ndarray, lengths: np.ndarray) -> list[Row]:
    """Mean reward over sixths of the completions, from the shortest to the longest."""
    if not lengths.any():
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 7), method="lower"))
    edges = np.append(edges, edges[-1] + 1)
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    total = np.bincount(place, weights=rewards, minlength=len(edges) - 1)
    tokens = np.bincount(place, weights=lengths, minlength=len(edges) - 1)
    return [
        {
            "low": int(edges[i]),
            "high": int(edges[i + 1] - 1),
            "length_mean": float(tokens[i] / count[i]),
            "count": int(count[i]),
            "reward_mean": float(total[i] / count[i]),
        }
        for i in np.flatnonzero(count)
    ]


def _log(steps: Sequence[StepRecord]) -> list[Row]:
    lines = [line for s in steps if s.verb == "train" for line in read_lines(s.path / "log.jsonl")]
    stride = max(1, -(-len(lines) // LOG_POINTS))
    return [
        {k: v for k, v in line.items() if is_number(v) and np.isfinite(v)}
        for line in lines[::stride]
    ]


def _speed(step: StepRecord) -> Row | None:
    if not step.manifest or step.verb not in {"generate", "judge", "train"}:
        return None
    seconds, tokens = step.manifest.get("seconds"), step.summary.get("tokens")
    return {
        "verb": step.verb,
        "label": step.label,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
    }
