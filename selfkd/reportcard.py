"""A judge's report card: what is known of how far its rewards can be trusted.

`report_card` gives the figures, which are also what `selfkd judge test --json` prints as `card`;
what the samples cannot tell is null. Correlations are Spearman's; intervals are 95 % bootstrap
intervals over prompts (`selfkd.agreement`). `gold` holds, for labels of two values, the measures of
a yes or no (the higher label is right), and for any labels those of an order.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selfkd import agreement
from selfkd.contests import swaps
from selfkd.controls import check
from selfkd.judgetest import Trial
from selfkd.records import Sample, Verdict

Row = dict[str, Any]

PARSED = 0.95
"""Least share of samples with a reward: below it, what is selected is mostly a format."""
CONSISTENT = 0.8
"""Least share of pairs whose order survives the swap."""
LENGTH = 0.3
"""Largest rank correlation of reward and length, at equal gold where that is known."""
EXCESS = 0.25
"""Largest excess of one policy, in standard deviations of the reward. This and `LENGTH` are minded
only where they are two standard errors from 0."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """The samples with a reward, in arrays."""

    samples: Sequence[Sample]
    rewards: np.ndarray
    prompts: np.ndarray
    gold: np.ndarray
    """NaN where there is no label."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(s.completion) for s in self.samples], dtype=float)

    def where(self, chosen: np.ndarray) -> "_Scored":
        """Those of the samples that are marked."""
        samples = [s for s, keep in zip(self.samples, chosen, strict=True) if keep]
        return _Scored(samples, self.rewards[chosen], self.prompts[chosen], self.gold[chosen])


def report_card(trial: Trial, threshold: float | None = None) -> Row:
    """The figures; `threshold` is the reward from which a sample counts as right (default: 0.5,
    or the middle of the rewards where they leave [0, 1])."""
    verdicts = trial.verdicts
    scored = _scored(trial)
    return {
        "judge": trial.spec.name,
        "samples": len(verdicts),
        "scored": len(scored.samples),
        "unscored": dict(Counter(v.status for v in verdicts if v.reward is None)),
        "cost_usd": sum(v.cost_usd for p in trial.passes for v in p)
        + sum(v.cost_usd for v in trial.control_verdicts),
        "reward": _rewards(scored.rewards),
        "gold": _gold(scored, threshold),
        "length": _length(scored),
        "retest": _retest(trial.passes),
        "swap": _swap(trial),
        "policies": _policies(scored),
        "controls": _controls(trial),
    }


def notes(card: Row) -> list[str]:
    """What to mind of a card, in words."""
    found = []
    share = card["scored"] / card["samples"]
    if share < PARSED:
        found.append(f"only {share:.0%} of the samples have a reward")
    if card["reward"] and card["reward"]["std"] == 0 and card["scored"] > 1:
        found.append("every reward is the same: it tells nothing apart")
    gold, swap, length = card["gold"] or {}, card["swap"], card["length"]
    if gold.get("auc") is not None and (gold["auc_interval"] or [gold["auc"]])[0] <= 0.5:
        found.append("it may rank right and wrong no better than chance")
    if swap and swap["consistent"] is not None and swap["consistent"] < CONSISTENT:
        found.append(f"{1 - swap['consistent']:.0%} of its preferences change with the order")
    tied = length["at_equal_gold"] if length["at_equal_gold"] is not None else length["spearman"]
    if tied is not None and abs(tied) > max(LENGTH, 2 / card["scored"] ** 0.5):
        found.append(f"it likes {'longer' if tied > 0 else 'shorter'} completions ({tied:+.2f})")
    spread = (card["reward"] or {}).get("std") or 0
    for name, row in (card["policies"] or {}).items():
        limit = max(EXCESS, 2 / row["samples"] ** 0.5) * spread
        if row["excess"] is not None and row["excess"] > limit:
            found.append(f"it gives {name} {row['excess']:+.3f} more than others at equal gold")
    failed = [kind for kind, row in card["controls"].items() if row["fails"]]
    if failed:
        found.append(f"it fails the controls {', '.join(failed)}")
    return found


def _scored(trial: Trial) -> _Scored:
    pairs = [(s, v.reward) for s, v in zip(trial.samples, trial.verdicts, strict=True)]
    pairs = [(s, r) for s, r in pairs if r is not None]
    samples = [s for s, _ in pairs]
    return _Scored(
        samples,
        np.array([r for _, r in pairs], dtype=float),
        _numbers([s.prompt.id for s in samples]),
        np.array([trial.gold.get(s.id, np.nan) for s in samples], dtype=float),
    )


def _numbers(names: Sequence[str]) -> np.ndarray:
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=int)


def _rewards(rewards: np.ndarray) -> Row | None:
    if not len(rewards):
        return None
    low, middle, high = (float(v) for v in np.quantile(rewards, [0, 0.5, 1]))
    return {
        "mean": float(rewards.mean()),
        "std": float(rewards.std()),
        "min": low,
        "median": middle,
        "max": high,
    }


def _gold(scored: _Scored, threshold: float | None) -> Row | None:
    known = scored.where(~np.isnan(scored.gold))
    if not len(known.samples):
        return None
    rewards, gold = known.rewards, known.gold
    count, ordered = agreement.pairwise(known.prompts, rewards, gold)
    row = {
        "labels": len(gold),
        "mean": float(gold.mean()),
        "spearman": agreement.spearman(rewards, gold),
        "pairs": count,
        "pairwise": ordered,
    }
    values = np.unique(gold)
    return row | (_binary(known, gold == values[-1], threshold) if len(values) == 2 else {})


def _binary(known: _Scored, right: np.ndarray, threshold: float | None) -> Row:
    rewards, prompts = known.rewards, known.prompts
    cut = _threshold(rewards) if threshold is None else threshold
    best = agreement.best_threshold(rewards, right)
    return {
        "threshold": cut,
        "accuracy": agreement.accuracy(rewards, right, cut),
        "accuracy_interval": agreement.interval(
            prompts, lambda i: agreement.accuracy(rewards[i], right[i], cut)
        ),
        "best_threshold": best and best[0],
        "best_accuracy": best and best[1],
        "kappa": agreement.kappa(rewards, right, cut),
        "auc": agreement.auc(rewards, right),
        "auc_interval": agreement.interval(prompts, lambda i: agreement.auc(rewards[i], right[i])),
        "brier": agreement.brier(rewards, right),
        "calibration_error": agreement.calibration_error(rewards, right),
    }


def _threshold(rewards: np.ndarray) -> float:
    low, high = float(rewards.min()), float(rewards.max())
    return 0.5 if low >= 0 and high <= 1 else (low + high) / 2


def _length(scored: _Scored) -> Row:
    known = scored.where(~np.isnan(scored.gold))
    return {
        "spearman": agreement.spearman(scored.rewards, scored.lengths),
        "at_equal_gold": agreement.spearman_within(known.gold, known.rewards, known.lengths),
    }


def _retest(passes: Sequence[Sequence[Verdict]]) -> Row | None:
    if len(passes) < 2:
        return None
    table = np.array([[_number(v) for v in p] for p in passes], dtype=float)
    whole = table[:, ~np.isnan(table).any(axis=0)]
    spread = whole.std(axis=0, ddof=1)
    return {
        "times": len(passes),
        "samples": whole.shape[1],
        "changed": float((spread > 0).mean()) if len(spread) else None,
        "std_mean": float(spread.mean()) if len(spread) else None,
        "largest": float(np.ptp(whole, axis=0).max()) if len(spread) else None,
    }


def _swap(trial: Trial) -> Row | None:
    if (told := swaps(v.rationale for v in trial.verdicts)) and trial.spec.compares:
        pairs, inconsistent = told  # it asks in both orders itself
        return {"pairs": pairs, "consistent": 1 - inconsistent / pairs if pairs else None}
    if len(trial.passes) < 2 or not trial.sees_prompts:
        return None
    rewards = [np.array([_number(v) for v in p], dtype=float) for p in trial.passes[:2]]
    known = ~np.isnan(rewards[0]) & ~np.isnan(rewards[1])
    prompts = _numbers([s.prompt.id for s in trial.samples])[known]
    pairs, consistent = agreement.same_order(prompts, rewards[0][known], rewards[1][known])
    return {"pairs": pairs, "consistent": consistent}


def _policies(scored: _Scored) -> dict[str, Row] | None:
    names = np.array([s.policy for s in scored.samples])
    if len(np.unique(names)) < 2:
        return None
    known = ~np.isnan(scored.gold)
    labelled, own = scored.where(known), names[known]
    return {
        str(name): {
            "samples": int((names == name).sum()),
            "reward_mean": float(scored.rewards[names == name].mean()),
            "gold_mean": float(gold.mean()) if len(gold := labelled.gold[own == name]) else None,
            "excess": agreement.excess(labelled.gold, labelled.rewards, own == name),
        }
        for name in np.unique(names)
    }


def _controls(trial: Trial) -> dict[str, Row]:
    rows = [
        (s.view, s.prompt.id, v.reward)
        for s, v in zip(trial.controls, trial.control_verdicts, strict=True)
    ]
    return {kind: asdict(result) for kind, result in check(rows, trial.options).items()}


def _number(verdict: Verdict) -> float:
    return np.nan if verdict.reward is None else verdict.reward
