"""Which of a prompt's samples are compared: pure rules over one table of candidates.

A pair rule is shown the usable candidates of one prompt at a time: scored where it looks at
rewards, not empty, each text once (a given one before the policy's copy). What ends up in no pair
has its reason. A truncated sample may be rejected, but is chosen only where a rule allows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selfkd.errors import UsageError
from selfkd.rules import Candidates, by_prompt

DEMONSTRATION = "demonstration"
"""Policy name of completions that were given, not sampled."""

Pairing = tuple[list[tuple[int, int]], str]
"""(chosen, rejected) indices of one prompt, and why its other candidates are in no pair."""


@dataclass(frozen=True, slots=True)
class PairRule:
    """A named rule; `choose(candidates, usable indices of one prompt, rng)` returns a `Pairing`."""

    name: str
    choose: Callable[[Candidates, list[int], np.random.Generator], Pairing]
    scored: bool = True
    """Whether the rule compares rewards: then what has none is left out."""

    def apply(
        self, candidates: Candidates, rng: np.random.Generator
    ) -> tuple[list[tuple[int, int]], list[str | None]]:
        """All (chosen, rejected) pairs, and for each candidate why it is in none (or None)."""
        pairs: list[tuple[int, int]] = []
        reasons: list[str | None] = [None] * len(candidates)
        for members in by_prompt(candidates, range(len(candidates))).values():
            unusable = self._unusable(candidates, members)
            usable = [i for i in members if i not in unusable]
            found, reason = self.choose(candidates, usable, rng)
            if len(usable) < 2:
                found, reason = [], "nothing to compare with"
            used = {i for pair in found for i in pair}
            for i in members:
                reasons[i] = unusable.get(i, None if i in used else reason)
            pairs += found
        return pairs, reasons

    def _unusable(self, c: Candidates, members: Sequence[int]) -> dict[int, str]:
        seen: set[str] = set()
        reasons = {}
        # What was given comes first, in whichever order: of equal texts it is the one that stays.
        for i in sorted(members, key=lambda i: not _given(c, i)):
            text = c.completions[i].strip()
            if self.scored and np.isnan(c.rewards[i]):
                reasons[i] = "unscored"
            elif not text:
                reasons[i] = "empty"
            elif text in seen:
                reasons[i] = "duplicate"
            else:
                seen.add(text)
        return reasons


def best_worst(margin: float = 0.0, *, truncated: bool = False) -> PairRule:
    """The best against the worst of a prompt, if their rewards differ, and by `margin` at least.

    Self-Rewarding (arXiv:2401.10020, section 2.3); of equals the first.
    """

    def choose(c: Candidates, members: list[int], rng: np.random.Generator) -> Pairing:
        able = _able(c, members, truncated)
        if not able:
            return [], "nothing to choose"
        best = max(able, key=lambda i: c.rewards[i])
        worst = min(members, key=lambda i: c.rewards[i])
        gap = c.rewards[best] - c.rewards[worst]
        if gap <= 0 or gap < margin:
            return [], _close(gap, margin)
        return [(best, worst)], "neither best nor worst"

    return PairRule(f"best_worst({margin:g}{_allowing(truncated)})", choose)


def all_above(margin: float, *, truncated: bool = False) -> PairRule:
    """Every two of a prompt whose rewards differ by `margin` at least."""

    def choose(c: Candidates, members: list[int], rng: np.random.Generator) -> Pairing:
        able = _able(c, members, truncated)
        gaps = {(i, j): c.rewards[i] - c.rewards[j] for i in able for j in members}
        pairs = [pair for pair, gap in gaps.items() if gap > 0 and gap >= margin]
        return pairs, _close(max(gaps.values(), default=0.0), margin)

    return PairRule(f"all_above({margin:g}{_allowing(truncated)})", choose)


def k_zip(count: int, *, truncated: bool = False) -> PairRule:
    """`count` pairs a prompt, going through its right and its wrong answers side by side.

    The shorter list starts again when it ends, so a pair may come more than once and every prompt
    with both weighs the same. Iterative RPO (arXiv:2404.19733, section 2).
    """

    def choose(c: Candidates, members: list[int], rng: np.random.Generator) -> Pairing:
        right, wrong = _sides(c, members, truncated)
        if not right or not wrong:
            return [], _one_sided(right)
        return [(right[k % len(right)], wrong[k % len(wrong)]) for k in range(count)], "not paired"

    return PairRule(f"k_zip({count}{_allowing(truncated)})", choose)


def right_wrong(at_most: int | None = None, *, truncated: bool = False) -> PairRule:
    """Every right answer against every wrong one, or a seeded choice of `at_most` of those pairs.

    V-STaR (arXiv:2402.06457, section 3.2).
    """

    def choose(c: Candidates, members: list[int], rng: np.random.Generator) -> Pairing:
        right, wrong = _sides(c, members, truncated)
        pairs = [(i, j) for i in right for j in wrong]
        if not pairs:
            return [], _one_sided(right)
        chosen = sorted(rng.permutation(len(pairs))[:at_most].tolist())
        return [pairs[k] for k in chosen], f"over {at_most} pairs a prompt"

    return PairRule(f"right_wrong({at_most or 'all'}{_allowing(truncated)})", choose)


def length_controlled(rho: float, *, truncated: bool = False) -> PairRule:
    """The shortest of the best tier against the longest of the worst tier.

    With M and m a prompt's best and worst reward, the tiers are rewards of at least
    (1 - rho) M + rho m and of at most (1 - rho) m + rho M. Meta-Rewarding (arXiv:2407.19594,
    section 2.2). `rho` is in [0, 0.5), so that the tiers do not meet.
    """
    if not 0 <= rho < 0.5:
        raise UsageError(f"rho must be at least 0 and below 0.5, got {rho}")

    def choose(c: Candidates, members: list[int], rng: np.random.Generator) -> Pairing:
        rewards = {i: float(c.rewards[i]) for i in members}
        high, low = max(rewards.values(), default=0.0), min(rewards.values(), default=0.0)
        if high == low:
            return [], "tie"
        top = [
            i
            for i in _able(c, members, truncated)
            if rewards[i] >= (1 - rho) * high + rho * low - 1e-12
        ]
        bottom = [i for i in members if rewards[i] <= (1 - rho) * low + rho * high + 1e-12]
        if not top:
            return [], "nothing to choose"
        chosen = min(top, key=lambda i: c.lengths[i])
        return [(chosen, max(bottom, key=lambda i: c.lengths[i]))], "not paired"

    return PairRule(f"length_controlled({rho:g}{_allowing(truncated)})", choose)


def given_own() -> PairRule:
    """What a prompt was given as its completion against each of the policy's own; no judge.

    SPIN (arXiv:2401.01335). The policy's copy of what was given teaches nothing and is a duplicate.
    """

    def choose(c: Candidates, members: list[int], rng: np.random.Generator) -> Pairing:
        given = [i for i in members if _given(c, i)]
        own = [i for i in members if not _given(c, i)]
        return [(i, j) for i in given for j in own], "nothing given" if own else "same as given"

    return PairRule("given_own", choose, scored=False)


def _given(c: Candidates, i: int) -> bool:
    return bool(c.policies) and c.policies[i] == DEMONSTRATION


def _able(c: Candidates, members: Sequence[int], truncated: bool) -> list[int]:
    return [i for i in members if truncated or c.finishes[i] == "stop"]


def _sides(c: Candidates, members: list[int], truncated: bool) -> tuple[list[int], list[int]]:
    right = [i for i in _able(c, members, truncated) if c.rewards[i] >= 1]
    return right, [i for i in members if c.rewards[i] < 1]


def _one_sided(right: list[int]) -> str:
    return "all right" if right else "none right"


def _close(gap: float, margin: float) -> str:
    return "tie" if gap <= 0 else f"margin below {margin:g}"


def _allowing(truncated: bool) -> str:
    return ", truncated" if truncated else ""
