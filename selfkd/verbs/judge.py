"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from selfkd.enginecalls import EngineCalls, Told
from selfkd.judging import FAILURES, JudgeSpec, check_failures
from selfkd.ledger import Step
from selfkd.records import (
    VERDICTS,
    Prompt,
    Sample,
    Verdict,
    prompts_table,
    read_rows,
    rows_table,
    samples_table,
)
from selfkd.tables import Judgements, Samples
from selfkd.verbs.generate import drawn_sample, samples_summary

if TYPE_CHECKING:
    from selfkd.round import Round


def judge_shards(
    round: "Round",
    step: Step,
    samples: Samples,
    judge: JudgeSpec,
    calls: EngineCalls | None,
    told: Judgements | None,
) -> None:
    """Record the verdicts of every missing shard; the step's seconds leave sampling out.

    `calls` answers a judge that asks the sampler, and `told` is where its judgements go.
    """
    if calls and calls.policy.name != samples.policy:
        samples.wait()  # the engine holds one policy at a time
    step.started = time.monotonic()
    owed: deque[tuple[int, list[Sample]]] = deque()
    waited = 0.0

    def batches() -> Iterator[list[Sample]]:
        nonlocal waited
        waiting = time.monotonic()
        for index, batch in samples.batches():
            waited += time.monotonic() - waiting
            if not step.has(index):
                owed.append((index, batch))
                yield batch
            waiting = time.monotonic()
        waited += time.monotonic() - waiting

    tally = Tally.of(step)
    for verdicts in round.run.judge_batches(judge, batches(), calls):
        index, batch = owed.popleft()
        if calls and told:
            _record(round, told, index, calls.policy.name, calls.told(s.id for s in batch))
        table = rows_table(verdicts, VERDICTS)
        step.write(index, table)
        tally.add(table)
        round.progress(step, tally.count, samples.count, reward_mean=tally.mean)
    tally.check(round.run.config.judging.max_failure_rate)
    seconds = time.monotonic() - step.started - waited
    if told:
        _finish(round, told, calls.policy.name if calls else "")
    round.finish(step, tally.summary(judge.spec), seconds=seconds)


# -- judgements -----------------------------------------------------------------------------------


def _record(
    round: "Round", told: Judgements, shard: int, policy: str, answers: Sequence[Told]
) -> None:
    """One shard of judgements and of their prompts.

    The first prompt about a sample has its id; further ones (a second try) are numbered.
    """
    prompts: list[Prompt] = []
    rows: list[Sample] = []
    times: Counter[str] = Counter()
    for call, completions in answers:
        times[call.about] += 1
        again = f"#{times[call.about]}" if times[call.about] > 1 else ""
        prompt = Prompt(f"{call.about}{again}", call.messages)
        prompts.append(prompt)
        rows += [
            drawn_sample(round, told.step, prompt, k, c, policy, parents=(call.about,))
            for k, c in enumerate(completions)
        ]
    told.prompts.write(shard, prompts_table(prompts))
    told.step.write(shard, samples_table(rows))


def _finish(round: "Round", told: Judgements, policy: str) -> None:
    prompts = sum(table.num_rows for table in told.prompts.tables())
    round.finish(told.prompts, {"prompts": prompts, "too_long": 0})
    summary = samples_summary(told.step, policy, prompts)
    draws = math.ceil(summary["samples"] / prompts) if prompts else 0
    round.finish(told.step, {**summary, "draws": draws}, seconds=0.0)


# -- verdicts -------------------------------------------------------------------------------------


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
