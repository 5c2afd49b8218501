"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from selfkd.judging import FAILURES, JudgeSpec, check_failures
from selfkd.ledger import Step
from selfkd.records import VERDICTS, Sample, Verdict, read_rows, rows_table
from selfkd.tables import Samples

if TYPE_CHECKING:
    from selfkd.round import Round


def judge_shards(round: "Round", step: Step, samples: Samples, judge: JudgeSpec) -> None:
    """Record the verdicts of every missing shard; the step's seconds leave sampling out."""
    step.started = time.monotonic()
    owed: list[int] = []
    waited = 0.0

    def batches() -> Iterator[list[Sample]]:
        nonlocal waited
        waiting = time.monotonic()
        for index, batch in samples.batches():
            waited += time.monotonic() - waiting
            if not step.has(index):
                owed.append(index)
                yield batch
            waiting = time.monotonic()
        waited += time.monotonic() - waiting

    tally = Tally.of(step)
    for position, verdicts in enumerate(round.run.judge_batches(judge, batches())):
        table = rows_table(verdicts, VERDICTS)
        step.write(owed[position], table)
        tally.add(table)
        round.progress(step, tally.count, samples.count, reward_mean=tally.mean)
    tally.check(round.run.config.judging.max_failure_rate)
    seconds = time.monotonic() - step.started - waited
    round.finish(step, tally.summary(judge.spec), seconds=seconds)


@dataclass(slots=True)
class Tally:
    """What verdicts come to, shard by shard."""

    count: int = 0
    scored: int = 0
    total: float = 0.0
    """Sum of the rewards."""
    unscored: Counter[str] = field(default_factory=Counter)
    """Verdicts without a reward, by status."""
    failed: Verdict | None = None
    """The first that is a failure of the judge."""

    @classmethod
    def of(cls, step: Step) -> "Tally":
        """The verdicts that a step has recorded."""
        tally = cls()
        for index in step.shards():
            tally.add(step.read(index))
        return tally

    def add(self, table: pa.Table) -> None:
        """Take rows of `VERDICTS` in."""
        rewards = table.column("reward")
        self.count += table.num_rows
        self.scored += len(rewards) - rewards.null_count
        self.total += float(np.nansum(rewards.to_numpy()))
        without = table.filter(rewards.is_null())
        if without.num_rows:
            verdicts = read_rows(without, Verdict)
            self.unscored.update(v.status for v in verdicts)
            failed = (v for v in verdicts if v.status in FAILURES)
            self.failed = self.failed or next(failed, None)

    @property
    def mean(self) -> float | None:
        """Mean reward of the scored; None where there is none."""
        return self.total / self.scored if self.scored else None

    def check(self, max_rate: float) -> None:
        """DataError if the judge failed on more than the share `max_rate`."""
        check_failures(self.count, self.unscored, self.failed, max_rate)

    def summary(self, judge: str) -> dict[str, Any]:
        """What a step of verdicts says of them, `judge` being whose they are."""
        return {
            "judge": judge,
            "scored": self.scored,
            "unscored": dict(self.unscored),
            "reward_mean": self.mean,
        }
