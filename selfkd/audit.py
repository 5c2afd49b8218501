"""How far a judge's rewards agree with gold's, where both judged the same samples of a round."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfkd.agreement import auc, calibration_error, pairwise
from selfkd.rundir import AUDIT, StepRecord, codes, places


def audit_figures(judged: Sequence[StepRecord]) -> dict[str, Any] | None:
    """Figures of the first of the `judge` steps whose samples gold judged too, or None.

    samples        samples with a gold reward
    coverage       share of them that the judge scored
    auc            chance that a right sample (gold reward 1) has the higher reward of a right and a
                   wrong one, over all prompts; 0.5 is chance, None without both
    pairs          pairs of samples of a prompt that gold tells apart and the judge scored
    pair_accuracy  share of those that the judge orders as gold does, ties as half
    calibration    expected calibration error of rewards in [0, 1] taken as the chance of being
                   right (`agreement.calibration_error`), None for other rewards
    """
    steps = [step for step in judged if step.finished]
    for audit in (step for step in steps if step.label == AUDIT):
        samples = audit.args().get("samples")
        own = (s for s in steps if s.label != AUDIT and s.args().get("samples") == samples)
        if (step := next(own, None)) is not None:
            return _figures(step, audit)
    return None


def _figures(step: StepRecord, audit: StepRecord) -> dict[str, Any]:
    truth = audit.table(["sample_id", "prompt_id", "reward"])
    told = step.table(["sample_id", "reward"])
    where = places(truth.column("sample_id"), told.column("sample_id"))
    rewards = told.column("reward").take(where).to_numpy().astype(np.float64)
    gold = truth.column("reward").to_numpy().astype(np.float64)
    prompts = codes(truth.column("prompt_id"))
    known = ~np.isnan(gold)
    both = known & ~np.isnan(rewards)
    pairs, accuracy = pairwise(prompts[both], rewards[both], gold[both])
    return {
        "samples": int(known.sum()),
        "coverage": float(both.sum() / known.sum()) if known.any() else None,
        "auc": auc(rewards[both], gold[both] >= 1),
        "pairs": pairs,
        "pair_accuracy": accuracy,
        "calibration": calibration_error(rewards[both], gold[both] >= 1),
    }
