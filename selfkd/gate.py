"""Whether a new policy may replace the best one: a paired test on the held-out prompts.

In small experiments the second round of DPO or SPIN destroyed the model on every seed, so a run
with gold keeps the best policy unless the new one holds up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class GateResult:
    """`delta` is candidate minus best in mean reward; `p_value` is one-sided, for a fall."""

    delta: float
    p_value: float
    prompts: int


def paired_test(
    candidate: Mapping[str, float], best: Mapping[str, float], *, draws: int = 10_000, seed: int = 0
) -> GateResult:
    """One-sided paired sign-flip permutation test of a fall from `best` to `candidate`.

    Both map prompt ids to rewards; only prompts scored for both count. Under the null hypothesis
    the sign of each prompt's difference is arbitrary, so the p-value is the share of `draws`
    random sign flips whose mean is at most the observed one (the observed one included).
    """
    shared = sorted(candidate.keys() & best.keys())
    difference = np.array([candidate[p] - best[p] for p in shared])
    if not len(difference) or not difference.any():
        return GateResult(0.0, 1.0, len(shared))
    moved = difference[difference != 0]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(moved)))
    falls = np.count_nonzero(signs @ moved <= moved.sum() + 1e-9)
    return GateResult(float(difference.mean()), (falls + 1) / (draws + 1), len(shared))
