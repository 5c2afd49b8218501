"""Comparisons of two at a time: who meets whom, what both orders say, and how good each one is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Pair = tuple[int, int]
"""Indices of two that are compared, the first one shown first."""
Side = Literal["A", "B"]
"""The one shown first, or the other."""

_STANDING = re.compile(
    r"^(?:\w+: )?(\d+) pairs in both orders, ([\d.]+) won, (\d+) inconsistent", re.MULTILINE
)


def meetings(members: Sequence[int], opponents: int | None = None) -> list[Pair]:
    """Pairs (i, j), i < j, in which each member meets `opponents` others at least, or all of them.

    Members stand in a ring and meet their nearest neighbours, so all meet equally many.
    """
    count = len(members)
    half = count // 2
    reach = half if opponents is None else min(half, -(-opponents // 2))
    ring = ((k, (k + step) % count) for step in range(1, reach + 1) for k in range(count))
    return sorted({(min(p), max(p)) for i, j in ring if (p := (members[i], members[j]))})


@dataclass(frozen=True, slots=True)
class Standing:
    """How one did against the others, in the words that its verdict's rationale has for it."""

    pairs: int
    """Others it was compared with in both orders, both of which could be read."""
    won: float
    inconsistent: int
    """Those of the pairs whose winner changed with the order."""

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs in both orders, {self.won:g} won, {self.inconsistent} inconsistent"
        )

    @classmethod
    def read(cls, rationale: str) -> "Standing | None":
        """The standing that a rationale tells of, also one that another judge has added to."""
        found = _STANDING.search(rationale)
        return cls(int(found[1]), float(found[2]), int(found[3])) if found else None


def swaps(rationales: Iterable[str]) -> tuple[int, int] | None:
    """Pairs that were asked about in both orders, and those whose winner changed with it.

    From the rationales of all their samples; None where not one tells of a standing.
    """
    told = [standing for text in rationales if (standing := Standing.read(text))]
    pairs, inconsistent = (sum(getattr(s, k) for s in told) for k in ("pairs", "inconsistent"))
    return (pairs // 2, inconsistent // 2) if told else None  # each pair is of two samples


@dataclass(frozen=True, slots=True)
class Table:
    """What was won: `wins[i, j]` is how often i beat j, halves for ties; all of shape (N, N)."""

    wins: np.ndarray
    inconsistent: np.ndarray
    """Pairs (counted both ways) whose winner changed with the order."""
    settled: np.ndarray
    """Pairs (likewise) of which both orders could be read."""

    def standing(self, player: int) -> Standing:
        """How a player did."""
        rows = (self.settled, self.wins, self.inconsistent)
        pairs, won, inconsistent = (row[player].sum() for row in rows)
        return Standing(int(pairs), float(won), int(inconsistent))

    def rates(
        self, groups: Sequence[Sequence[int]], by: Literal["counts", "bradley_terry"]
    ) -> np.ndarray:
        """Win rate of each player in its group, 0 to 1; NaN for one without a game. Shape (N,).

        `counts`: against those it met. `bradley_terry`: the mean chance to beat another of its
        group, by strengths fitted to the group's games.
        """
        rates = np.full(len(self.wins), np.nan)
        for members in groups:
            wins = self.wins[np.ix_(members, members)]
            games = wins.sum(1) + wins.sum(0)
            if by == "counts":
                mean = wins.sum(1) / np.maximum(games, 0.5)
            else:
                strength = elo(wins)
                chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
                mean = (chance.sum(1) - 0.5) / max(1, len(members) - 1)
            rates[list(members)] = np.where(games > 0, mean, np.nan)
        return rates


def settle(
    count: int,
    pairs: Sequence[Pair],
    winners: Mapping[Pair, Side | None],
    inconsistent: Literal["tie", "drop"],
) -> Table:
    """The table of `count` players from who won in each order; unread games (None) do not count.

    A pair that was won by the same side both times has no winner: a tie, or no game at all.
    """
    table = Table(*(np.zeros((count, count)) for _ in range(3)))
    for i, j in pairs:
        there, back = winners.get((i, j)), winners.get((j, i))
        if there is None or back is None:
            continue
        table.settled[i, j] += 1
        table.settled[j, i] += 1
        if there == back:
            table.inconsistent[i, j] += 1
            table.inconsistent[j, i] += 1
            if inconsistent == "drop":
                continue
            table.wins[i, j] += 0.5
            table.wins[j, i] += 0.5
        else:
            table.wins[(i, j) if there == "A" else (j, i)] += 1
    return table


def elo(wins: np.ndarray, *, prior: float = 0.5, steps: int = 100) -> np.ndarray:
    """Bradley-Terry strengths, log scale with mean 0, of N from their win matrix (N, N).

    `wins[i, j]` is how often, or with what weight, i beat j. `prior` is added to every pair both
    ways, so that who never lost stays finite. Minorisation-maximisation (Hunter 2004).
    """
    games = np.asarray(wins, dtype=np.float64) + prior
    np.fill_diagonal(games, 0.0)
    both = games + games.T
    strength = np.ones(len(games))
    for _ in range(steps):
        strength = games.sum(1) / (both / (strength[:, None] + strength[None, :])).sum(1)
        strength /= np.exp(np.log(strength).mean())
    return np.log(strength)
