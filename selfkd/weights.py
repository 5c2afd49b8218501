"""How much each kept sample counts in training, by its verdict."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfkd.errors import DataError, UsageError
from selfkd.rules import Candidates

LARGEST = 20.0
"""Weights are cut here, as in Peng et al. 2019: one lucky sample must not be all that is learnt."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """A named function of the candidates: one weight each, at least 0; NaN where it cannot tell."""

    name: str
    weigh: Callable[[Candidates], np.ndarray]


def by_reward() -> Weighting:
    """The reward itself. Raises DataError for a negative one."""

    def weigh(c: Candidates) -> np.ndarray:
        if (c.rewards < 0).any():
            worst = c.sample_ids[int(np.nanargmin(c.rewards))]
            raise DataError(
                f"sample {worst} has reward {np.nanmin(c.rewards):g}, which is no weight",
                remedy="weigh by advantage, or have the judge give no negative rewards",
            )
        return c.rewards

    return Weighting("reward", weigh)


def by_shortfall(best: float = 1.0) -> Weighting:
    """What the reward lacks of the best one: failures count, successes do not."""
    return Weighting(f"shortfall({best:g})", lambda c: np.maximum(0.0, best - c.rewards))


def by_advantage(temperature: float = 1.0) -> Weighting:
    """exp((reward - mean reward of its prompt) / temperature), at most `LARGEST`.

    Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177, algorithm 1), with the mean
    over a prompt's samples for the value function.
    """
    if temperature <= 0:
        raise UsageError(f"temperature {temperature} is not positive")

    def weigh(c: Candidates) -> np.ndarray:
        groups: dict[str, list[float]] = defaultdict(list)
        for prompt, reward in zip(c.prompt_ids, c.rewards, strict=True):
            if not np.isnan(reward):
                groups[prompt].append(float(reward))
        means = [float(np.mean(groups[p])) if groups[p] else np.nan for p in c.prompt_ids]
        gaps = (c.rewards - np.array(means)) / temperature
        return np.minimum(np.exp(np.minimum(gaps, 700.0)), LARGEST)

    return Weighting(f"advantage({temperature:g})", weigh)
