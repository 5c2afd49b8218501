"""Verdicts counted as they come, and the limits beyond which a run stops."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from selfkd.errors import DataError
from selfkd.judging import FAILURES
from selfkd.records import Verdict


class Tally:
    """What the verdicts of one step say so far; holds counts, so a round may be of any size."""

    def __init__(self, verdicts: Iterable[Verdict] = ()) -> None:
        self.scored = 0
        """Verdicts with a reward."""
        self.unscored = Counter[str]()
        """Those without one, by status."""
        self._sum = 0.0
        self._example: dict[bool, Verdict] = {}
        self.add(verdicts)

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Count more verdicts."""
        for verdict in verdicts:
            if verdict.reward is not None:
                self.scored += 1
                self._sum += verdict.reward
            else:
                self.unscored[verdict.status] += 1
                self._example.setdefault(verdict.status in FAILURES, verdict)

    @property
    def judged(self) -> int:
        """Verdicts in all."""
        return self.scored + self.unscored.total()

    @property
    def mean(self) -> float | None:
        """Mean reward of the scored."""
        return self._sum / self.scored if self.scored else None

    def summary(self, judge: str) -> dict[str, Any]:
        """What a step of verdicts says of them, `judge` being whose they are."""
        return {
            "judge": judge,
            "scored": self.scored,
            "unscored": dict(self.unscored),
            "reward_mean": self.mean,
        }

    def check(self, max_failure_rate: float, max_unscored: float, total: int) -> None:
        """DataError once it is certain that of `total` samples too many have no reward.

        More than the share `max_failure_rate` of errors and time-outs, or more than the share
        `max_unscored` without a reward for whatever reason: what is selected among the rest is
        mostly what the judge could read.
        """
        failed = sum(self.unscored[status] for status in FAILURES)
        if failed > max_failure_rate * total:
            verdict = self._example[True]
            raise DataError(
                f"judge {verdict.judge!r} failed on {failed} of {self.judged} samples ({self}), "
                f"more than the share {max_failure_rate:g} of {total}; for example "
                f"{verdict.rationale}",
                remedy="mend the judge (see `selfkd judge test`) or raise "
                "judging.max_failure_rate; on resume the failed ones are judged again",
            )
        if self.unscored.total() > max_unscored * total:
            verdict = self._example.get(False) or self._example[True]
            example = f"; for example {verdict.rationale[:300]}" if verdict.rationale else ""
            raise DataError(
                f"judge {verdict.judge!r} gave {self.unscored.total()} of {self.judged} samples no "
                f"reward ({self}), more than the share {max_unscored:g} of {total}{example}",
                remedy="see why with `selfkd judge test`, or raise judging.max_unscored",
            )

    def __str__(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in sorted(self.unscored.items()))
