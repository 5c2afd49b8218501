"""How far a judge's rewards agree with gold's, on the same samples."""

from typing import Any

import numpy as np


def auc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Chance that a right sample has a higher score than a wrong one, ties as half.

    `scores` (N,) floats, `right` (N,) booleans; None unless there are both. 0.5 is chance.
    """
    good, bad = np.sort(scores[right]), scores[~right]
    if not len(good) or not len(bad):
        return None
    above = len(good) - np.searchsorted(good, bad, "right")
    ties = np.searchsorted(good, bad, "right") - np.searchsorted(good, bad, "left")
    return float((above + ties / 2).sum() / (len(good) * len(bad)))


def agreement(prompts: np.ndarray, scores: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Figures of a judge against gold: `prompts` (N,) numbers of prompts, `scores` and `gold` (N,)
    rewards, NaN where there is none.

    samples        samples with a gold reward
    coverage       share of them that the judge scored
    auc            see `auc`: over all samples, right from gold reward 1
    pairs          pairs of samples of a prompt that gold tells apart and the judge scored
    pair_accuracy  share of those pairs that the judge orders as gold does, ties as half
    """
    known = ~np.isnan(gold)
    both = known & ~np.isnan(scores)
    pairs, agreed = 0, 0.0
    for prompt in np.unique(prompts[both]):
        members = both & (prompts == prompt)
        told, truth = (np.subtract.outer(v, v) for v in (scores[members], gold[members]))
        apart = truth > 0
        pairs += int(apart.sum())
        agreed += float((told[apart] > 0).sum() + (told[apart] == 0).sum() / 2)
    return {
        "samples": int(known.sum()),
        "coverage": float(both.sum() / known.sum()) if known.any() else None,
        "auc": auc(scores[both], gold[both] >= 1),
        "pairs": pairs,
        "pair_accuracy": agreed / pairs if pairs else None,
    }
