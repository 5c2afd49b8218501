"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selfkd.judging import JudgeSpec, check_failures
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

    scores = _rewards(_recorded(step))
    done = sum(table.num_rows for table in step.tables())
    for position, verdicts in enumerate(round.run.judge_batches(judge, batches())):
        step.write(owed[position], rows_table(verdicts, VERDICTS))
        done += len(verdicts)
        scores += _rewards(verdicts)
        mean = float(np.mean(scores)) if scores else None
        round.progress(step, done, samples.count, reward_mean=mean)
    verdicts = _recorded(step)
    check_failures(verdicts, round.run.config.judging.max_failure_rate)
    seconds = time.monotonic() - step.started - waited
    round.finish(step, verdict_summary(verdicts, judge.spec), seconds=seconds)


def _recorded(step: Step) -> list[Verdict]:
    return [v for table in step.tables() for v in read_rows(table, Verdict)]


def _rewards(verdicts: Sequence[Verdict]) -> list[float]:
    return [v.reward for v in verdicts if v.reward is not None]


def verdict_summary(verdicts: Sequence[Verdict], judge: str) -> dict[str, Any]:
    """What a step of verdicts says of them, `judge` being whose they are."""
    rewards = _rewards(verdicts)
    return {
        "judge": judge,
        "scored": len(rewards),
        "unscored": dict(Counter(v.status for v in verdicts if v.reward is None)),
        "reward_mean": float(np.mean(rewards)) if rewards else None,
    }
