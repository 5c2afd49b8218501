"""Two to six runs beside each other: held-out difference, config, and the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from selfkd.errors import UsageError
from selfkd.metrics import recorded_rows
from selfkd.rundir import HELDOUT, find_rows, read_config, round_numbers, round_steps, run_facts
from selfkd.viewer.show import PROMPT, prompt_text
from selfkd.yamlfile import flatten

Row = dict[str, Any]

MOST = 6
DRAWS = 10_000
_OPERATIONAL = ("run", "cluster")
"""Parts of a config that say where a run ran, not what it did."""


@dataclass(frozen=True, slots=True)
class Heldout:
    """The newest held-out measurement of a run: rewards and answers by prompt id."""

    round: int
    policy: str
    rewards: Mapping[str, float]
    """Mean reward of the scored answers to a prompt."""


def compare_runs(run_dirs: Sequence[Path], *, prompts: int = 12) -> Row:
    """What `selfkd compare --json` prints.

    `runs` (facts and rounds as `curves --json` has them), `heldout` (each run against the first:
    mean difference in held-out reward over the prompts both answered, with a 95 % interval from a
    paired bootstrap over prompts), `config` ({key: [value in each run]} where they differ) and
    `prompts` (held-out prompts of all runs, those first where the runs differ most).
    """
    if not 2 <= len(run_dirs) <= MOST:
        raise UsageError(f"{len(run_dirs)} runs given", remedy=f"name two to {MOST} runs")
    documents = [run_facts(p) | {"rounds": recorded_rows(p)} for p in run_dirs]
    measured = [newest_heldout(p) for p in run_dirs]
    return {
        "runs": documents,
        "heldout": [difference(measured[0], other) for other in measured[1:]],
        "config": config_differences(run_dirs),
        "prompts": _same_prompts(run_dirs, measured, prompts),
    }


def newest_heldout(run_dir: Path) -> Heldout | None:
    """The held-out rewards of the newest round that has any; None where nothing is measured."""
    for number in reversed(round_numbers(run_dir)):
        steps = [s for s in round_steps(run_dir, number) if s.label == HELDOUT]
        by_prompt: dict[str, list[float]] = {}
        for step in (s for s in steps if s.verb == "judge"):
            for row in step.table(["prompt_id", "reward"]).to_pylist():
                if row["reward"] is not None:
                    by_prompt.setdefault(row["prompt_id"], []).append(row["reward"])
        if by_prompt:
            made = next((s for s in steps if s.verb == "generate"), None)
            policy = made.args().get("policy_name", "") if made else ""
            means = {p: sum(r) / len(r) for p, r in by_prompt.items()}
            return Heldout(number, policy, means)
    return None


def difference(first: Heldout | None, other: Heldout | None) -> Row:
    """`other` minus `first` in mean held-out reward over shared prompts, and its interval.

    Keys: prompts (shared), delta, low, high (null where nothing is shared), and round and policy
    of both measurements, as `of` and `against`.
    """
    facts: Row = {"against": _which(first), "of": _which(other)}
    empty: Row = {"prompts": 0, "delta": None, "low": None, "high": None}
    if first is None or other is None:
        return facts | empty
    shared = sorted(first.rewards.keys() & other.rewards.keys())
    if not shared:
        return facts | empty
    deltas = np.array([other.rewards[p] - first.rewards[p] for p in shared])
    low, high = paired_bootstrap(deltas)
    found = {"delta": float(deltas.mean()), "low": low, "high": high}
    return facts | {"prompts": len(shared)} | found


def paired_bootstrap(
    deltas: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of paired differences, prompts drawn with replacement.

    Efron and Tibshirani 1993, chapter 13; one difference a prompt, `draws` resamples.
    """
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, 500):
        chosen = rng.integers(len(deltas), size=(min(500, draws - start), len(deltas)))
        means[start : start + len(chosen)] = deltas[chosen].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _which(measured: Heldout | None) -> Row | None:
    if measured is None:
        return None
    rewards = list(measured.rewards.values())
    mean = sum(rewards) / len(rewards)
    return {"round": measured.round, "policy": measured.policy, "reward_mean": mean}


# -- config ---------------------------------------------------------------------------------------


def config_differences(run_dirs: Sequence[Path]) -> dict[str, list[Any]]:
    """Config keys, dotted, whose values are not the same in all runs; absent ones are null."""
    flat = [flatten(_config(path)) for path in run_dirs]
    keys = dict.fromkeys(chain.from_iterable(flat))
    values = {key: [config.get(key) for config in flat] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def _config(run_dir: Path) -> Row:
    config = read_config(run_dir)
    recorded = config.get("run")
    head = recorded if isinstance(recorded, dict) else {}
    plain = {k: v for k, v in config.items() if k not in _OPERATIONAL}
    code = {k: head.get(k) for k in ("versions", "git", "loop_identity", "judge_identity")}
    return plain | {"run": code}


# -- the same prompts -----------------------------------------------------------------------------


def _same_prompts(
    run_dirs: Sequence[Path], measured: Sequence[Heldout | None], limit: int
) -> list[Row]:
    known = [m for m in measured if m is not None]
    if len(known) < len(measured):
        return []
    shared = set.intersection(*(set(m.rewards) for m in known))
    rewards = {p: [m.rewards[p] for m in known] for p in shared}
    order = sorted(shared, key=lambda p: (min(rewards[p]) - max(rewards[p]), p))[:limit]
    answers = [_answers(path, m.round, order) for path, m in zip(run_dirs, known, strict=True)]
    asked = find_rows(_heldout(run_dirs[0], known[0].round, "prompts"), PROMPT, order)
    return [
        {
            "prompt_id": p,
            "prompt": prompt_text(asked.get(p, {})),
            "answer": asked.get(p, {}).get("answer"),
            "rewards": rewards[p],
            "completions": [found.get(p) for found in answers],
        }
        for p in order
    ]


def _heldout(run_dir: Path, round: int, verb: str) -> list[Any]:
    return [s for s in round_steps(run_dir, round) if s.label == HELDOUT and s.verb == verb]


def _answers(run_dir: Path, round: int, prompts: Sequence[str]) -> dict[str, str]:
    steps = _heldout(run_dir, round, "generate")
    found = find_rows(steps, ("prompt_id", "completion"), prompts)
    return {p: row["completion"] for p, row in found.items()}
