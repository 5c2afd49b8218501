"""Which scored samples are kept: pure, composable rules over one table of candidates.

A rule looks at the candidates that earlier rules left alive and gives each one it drops a reason.
`a | b` applies `a`, then `b`.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Candidates:
    """Scored samples in columns, each of length N; an unscored reward is NaN."""

    sample_ids: Sequence[str]
    prompt_ids: Sequence[str]
    completions: Sequence[str]
    answers: Sequence[str | None]
    finishes: Sequence[str]
    lengths: np.ndarray
    """Tokens of each completion."""
    rewards: np.ndarray
    policies: Sequence[str] = ()
    """Who wrote each completion."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    @classmethod
    def concatenated(cls, parts: "Sequence[Candidates]") -> "Candidates":
        """All candidates of the parts, in order."""
        columns: dict[str, Any] = {
            f.name: [value for part in parts for value in getattr(part, f.name)]
            for f in fields(cls)
        }
        columns["lengths"] = np.array(columns["lengths"], dtype=np.int64)
        columns["rewards"] = np.array(columns["rewards"], dtype=np.float64)
        return cls(**columns)


Reasons = dict[int, str]
"""Index of a dropped candidate -> why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A named rule: `drop(candidates, alive indices, rng)` returns the reasons of what it drops."""

    name: str
    drop: Callable[[Candidates, list[int], np.random.Generator], Reasons]
    across: bool = True
    """Whether it must see all samples of a step at once, or may be shown those of some prompts at a
    time: then it also works where a round's samples do not fit into memory."""

    def __or__(self, other: "Rule") -> "Rule":
        def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
            first = self.drop(c, alive, rng)
            rest = [i for i in alive if i not in first]
            return first | other.drop(c, rest, rng)

        return Rule(f"{self.name} | {other.name}", drop, self.across or other.across)

    def apply(self, candidates: Candidates, rng: np.random.Generator) -> list[str | None]:
        """The reason each candidate is dropped, or None where it is kept."""
        reasons = self.drop(candidates, list(range(len(candidates))), rng)
        return [reasons.get(i) for i in range(len(candidates))]


def above(threshold: float, *, inclusive: bool = False) -> Rule:
    """Reward over the threshold; what has no reward is dropped as unscored (ReST's filter)."""

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        reasons = {}
        for i in alive:
            reward = c.rewards[i]
            if np.isnan(reward):
                reasons[i] = "unscored"
            elif reward < threshold or (reward == threshold and not inclusive):
                reasons[i] = f"reward below {threshold:g}"
        return reasons

    return Rule(f"{'at_least' if inclusive else 'above'}({threshold:g})", drop, across=False)


def below(threshold: float) -> Rule:
    """Reward under the threshold; what has no reward is dropped as unscored (OPSD on failures)."""

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        reasons = {i: f"reward {threshold:g} or more" for i in alive if c.rewards[i] >= threshold}
        return reasons | {i: "unscored" for i in alive if np.isnan(c.rewards[i])}

    return Rule(f"below({threshold:g})", drop)


def correct() -> Rule:
    """Reward 1: right by a rule that compares with the reference answer."""

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        reasons = {}
        for i in alive:
            if np.isnan(c.rewards[i]):
                reasons[i] = "unscored"
            elif c.rewards[i] < 1:
                reasons[i] = "incorrect"
        return reasons

    return Rule("correct", drop, across=False)


def finished() -> Rule:
    """The model ended the completion itself, and wrote something."""

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        reasons = {}
        for i in alive:
            if c.finishes[i] != "stop":
                reasons[i] = "truncated"
            elif not c.completions[i].strip():
                reasons[i] = "empty"
        return reasons

    return Rule("finished", drop, across=False)


def unique(key: Callable[[str], Hashable] = str.strip) -> Rule:
    """The first of each prompt's completions with the same text (or the same `key` of the text)."""

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        seen: set[tuple[str, Hashable]] = set()
        reasons = {}
        for i in alive:
            identity = (c.prompt_ids[i], key(c.completions[i]))
            if identity in seen:
                reasons[i] = "duplicate"
            seen.add(identity)
        return reasons

    name = getattr(key, "__name__", "key")
    return Rule("unique" if key is str.strip else f"unique({name})", drop, across=False)


def at_most(count: int) -> Rule:
    """A seeded random `count` of each prompt's candidates, not the first ones (ReST-EM: 10)."""

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        reasons = {}
        for members in by_prompt(c, alive).values():
            for i in rng.permutation(members)[count:]:
                reasons[i] = f"over {count} a prompt"
        return reasons

    return Rule(f"at_most({count})", drop, across=False)


def top(count: int, *, ties: bool = False) -> Rule:
    """The `count` best-rewarded of each prompt's candidates.

    Candidates of equal reward of which only some would fit are all dropped, because nothing but
    their order would choose between them: a judge that gives everything the same reward then
    teaches nothing. With `ties` the first of them fill up the count.
    """

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        reasons = {i: "unscored" for i in alive if np.isnan(c.rewards[i])}
        for members in by_prompt(c, (i for i in alive if i not in reasons)).values():
            ranked = sorted(members, key=lambda i: -c.rewards[i])
            kept, rest = ranked[:count], ranked[count:]
            reasons |= dict.fromkeys(rest, f"not in the best {count}")
            if rest and not ties and c.rewards[kept[-1]] == c.rewards[rest[0]]:
                cut = c.rewards[rest[0]]
                reasons |= {i: "tied" for i in ranked if c.rewards[i] == cut}
        return reasons

    name = f"top({count}, ties)" if ties else f"top({count})"
    return Rule(name, drop, across=False)


def balanced() -> Rule:
    """No answer more often than the second most frequent one: a seeded choice of the rest goes.

    Self-Rewarding's seed judgements (arXiv:2401.10020, section 3.1): one score would prevail.
    """

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        groups: dict[str | None, list[int]] = defaultdict(list)
        for i in alive:
            groups[c.answers[i]].append(i)
        sizes = sorted((len(members) for members in groups.values()), reverse=True)
        limit = sizes[1] if len(sizes) > 1 else len(alive)
        reasons = {}
        for members in groups.values():
            for i in rng.permutation(members)[limit:]:
                reasons[int(i)] = "over-represented"
        return reasons

    return Rule("balanced", drop)


def everything() -> Rule:
    """Keep all: the control without a judge."""
    return Rule("everything", lambda c, alive, rng: {}, across=False)


def by_prompt(c: Candidates, alive: Iterable[int]) -> dict[str, list[int]]:
    """The given candidates' indices by prompt id, in order."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in alive:
        groups[c.prompt_ids[i]].append(i)
    return groups
