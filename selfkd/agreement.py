"""How far rewards agree with gold labels, with one another, and with what should not matter.

Arrays are of length N, one entry a sample, without NaN; `gold` holds labels, `prompts` one number a
prompt. A measure that the data cannot give (one class only, no variance) is None.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Statistic = Callable[[Array], float | None]
"""A measure of the samples at the given indices."""

BINS = 10
"""Equal-width bins of the calibration error."""


def accuracy(rewards: Array, right: Array, threshold: float) -> float | None:
    """Share of samples where `reward >= threshold` says what the boolean `right` says."""
    return float(np.mean((rewards >= threshold) == right)) if len(rewards) else None


def best_threshold(rewards: Array, right: Array) -> tuple[float, float] | None:
    """The observed reward that as a threshold gives the highest accuracy, and that accuracy."""
    if not len(rewards):
        return None
    found = [(float(np.mean((rewards >= t) == right)), float(t)) for t in np.unique(rewards)]
    best, threshold = max(found)
    return threshold, best


def kappa(rewards: Array, right: Array, threshold: float) -> float | None:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e): agreement beyond that of chance."""
    if not len(rewards):
        return None
    said = rewards >= threshold
    observed = np.mean(said == right)
    chance = np.mean(said) * np.mean(right) + np.mean(~said) * np.mean(~right)
    return float((observed - chance) / (1 - chance)) if chance < 1 else None


def auc(rewards: Array, right: Array) -> float | None:
    """Area under the ROC curve by the Mann-Whitney statistic; ties count half."""
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    above = ranks(rewards)[right].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def brier(rewards: Array, right: Array) -> float | None:
    """Brier score, the mean of (reward - right)^2; None unless rewards are in [0, 1]."""
    return float(np.mean((rewards - right) ** 2)) if _are_shares(rewards) else None


def calibration_error(rewards: Array, right: Array) -> float | None:
    """Expected calibration error: |mean reward - share right| in each bin, weighted by its size.

    None unless rewards are in [0, 1] (Naeini et al. 2015, with `BINS` bins).
    """
    if not _are_shares(rewards):
        return None
    bins = np.minimum((rewards * BINS).astype(int), BINS - 1)
    sizes = np.bincount(bins, minlength=BINS)
    gaps = np.bincount(bins, weights=rewards - right, minlength=BINS)
    return float(np.abs(gaps).sum() / sizes.sum())


def pairwise(prompts: Array, rewards: Array, gold: Array) -> tuple[int, float | None]:
    """Pairs of one prompt whose gold differs, and the share that the rewards order alike.

    Equal rewards count half.
    """
    count, agree = 0, 0.0
    for prompt in np.unique(prompts):
        of = prompts == prompt
        truth = np.sign(np.subtract.outer(gold[of], gold[of]))
        said = np.sign(np.subtract.outer(rewards[of], rewards[of]))
        count += int((truth > 0).sum())
        agree += float((said[truth > 0] + 1).sum() / 2)
    return count, agree / count if count else None


def same_order(prompts: Array, first: Array, second: Array) -> tuple[int, float | None]:
    """Pairs of one prompt that rewards tell apart, and the share that both order alike.

    The swap consistency of a judge that sees a prompt's samples together, where `second` are its
    rewards of the same samples in another order. Pairs that are equal both times tell nothing of
    it: a judge without preferences would be the most consistent.
    """
    count, alike = 0, 0
    for prompt in np.unique(prompts):
        of = np.flatnonzero(prompts == prompt)
        i, j = np.triu_indices(len(of), 1)
        one = np.sign(first[of[i]] - first[of[j]])
        other = np.sign(second[of[i]] - second[of[j]])
        told = (one != 0) | (other != 0)
        count, alike = count + int(told.sum()), alike + int((one == other)[told].sum())
    return count, alike / count if count else None


def spearman(a: Array, b: Array) -> float | None:
    """Spearman's rank correlation: Pearson's of the mid-ranks."""
    if len(a) < 3:
        return None
    a, b = ranks(a), ranks(b)
    if not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def spearman_within(groups: Array, a: Array, b: Array) -> float | None:
    """Mean rank correlation within groups of equal `groups`, weighted by their sizes."""
    parts = [(int(of.sum()), spearman(a[of], b[of])) for of in _members(groups)]
    sizes = [size for size, value in parts if value is not None]
    values = [value for _, value in parts if value is not None]
    return float(np.average(values, weights=sizes)) if values else None


def excess(groups: Array, rewards: Array, own: Array) -> float | None:
    """Mean reward of the samples marked in `own` over the others', at equal `groups`.

    With gold labels as groups: how much better a judge likes one policy than its samples deserve.
    """
    gaps, sizes = [], []
    for of in _members(groups):
        mine, theirs = rewards[of & own], rewards[of & ~own]
        if len(mine) and len(theirs):
            gaps.append(mine.mean() - theirs.mean())
            sizes.append(len(mine))
    return float(np.average(gaps, weights=sizes)) if gaps else None


def interval(
    prompts: Array, statistic: Statistic, *, draws: int = 500, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of a measure under a bootstrap over prompts (Efron 1979).

    Prompts are drawn, not samples: those of one prompt are not independent.
    """
    members = [np.flatnonzero(of) for of in _members(prompts)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if len(members) > 1 else 0):
        drawn = rng.integers(len(members), size=len(members))
        value = statistic(np.concatenate([members[i] for i in drawn]))
        if value is not None:
            found.append(value)
    if len(found) < draws / 2:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs (mid-ranks)."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[places]


def _members(groups: Array) -> list[Array]:
    return [groups == value for value in np.unique(groups)]


def _are_shares(rewards: Array) -> bool:
    return bool(len(rewards)) and rewards.min() >= 0 and rewards.max() <= 1
