"""Comparisons of two at a time: who meets whom, what both orders say, and how good each one is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Pair = tuple[int, int]
"""Indices of two that are compared, the first one shown first."""
Side = Literal["A", "B"]
"""The one shown first, or the other."""


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
class Table:
    """What was won: `wins[i, j]` is how often i beat j, halves for ties; both of shape (N, N)."""

    wins: np.ndarray
    inconsistent: np.ndarray
    """Pairs (counted both ways) whose winner changed with the order."""

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
    table = Table(np.zeros((count, count)), np.zeros((count, count)))
    for i, j in pairs:
        there, back = winners.get((i, j)), winners.get((j, i))
        if there is None or back is None:
            continue
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
