"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from selfkd.batches import Batch
from selfkd.enginecalls import EngineCalls, Told
from selfkd.judging import FAILURES, JudgeSpec, check_failures, check_scored
from selfkd.ledger import Step
from selfkd.processes import JudgingConfig
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
from selfkd.rundir import ANCHORS
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

    `calls` answers a judge that asks the sampler, and `told` is where its judgements go. In a step
    that is not finished, samples that the judge failed on before are judged again; the verdicts
    that they had stay beside the new ones (`Step.write`). DataError as soon as the failures, or the
    samples without a reward, are certain to be more than may be.
    """
    if calls and calls.policy.name != samples.policy:
        samples.wait()  # the engine holds one policy at a time
    step.started = time.monotonic()
    owed: deque[tuple[int, Batch, list[Verdict]]] = deque()
    tally = Tally()
    waited = 0.0

    limits = round.run.config.judging

    def batches() -> Iterator[Batch]:
        nonlocal waited
        waiting = time.monotonic()
        for index, table in samples.tables():
            waited += time.monotonic() - waiting
            recorded = step.read(index) if step.has(index) else None
            before = read_rows(recorded, Verdict) if recorded and _failed(recorded) else []
            if recorded and not before:
                tally.add(recorded)
            else:
                batch = samples.batch(table)
                owed.append((index, batch, before))
                yield _missing(judge, batch, before) if before else batch
            waiting = time.monotonic()
        waited += time.monotonic() - waiting

    # Anchors show whether the judge still says the same: what it said before is no answer.
    again = str(round.number) if step.label == ANCHORS else ""
    for table in round.run.judge_batches(judge, batches(), calls, again):
        index, batch, before = owed.popleft()
        if calls and told:
            _record(round, told, index, calls.policy.name, calls.told(batch.ids))
        if before:
            known = {v.sample_id: v for v in [*before, *read_rows(table, Verdict)]}
            table = rows_table([known[id] for id in batch.ids], VERDICTS)
        step.write(index, table)
        tally.add(table)
        tally.check(limits, samples.count)
        round.progress(step, tally.count, samples.count, reward_mean=tally.mean)
    tally.check(limits, tally.count)
    seconds = time.monotonic() - step.started - waited
    if told:
        _finish(round, told, calls.policy.name if calls else "")
    round.finish(step, tally.summary(judge.spec), seconds=seconds)


def _failed(verdicts: pa.Table) -> bool:
    return not set(verdicts.column("status").unique().to_pylist()).isdisjoint(FAILURES)


def _missing(judge: JudgeSpec, batch: Batch, verdicts: Sequence[Verdict]) -> Batch:
    """Samples of a shard that a verdict is still owed for: those that failed are judged again."""
    known = {v.sample_id for v in verdicts if v.status not in FAILURES}
    missing = [i for i, id in enumerate(batch.ids) if id not in known]
    if judge.writes:
        return batch if missing else batch.take([])  # its judgements are recorded by whole shards
    if judge.compares:
        prompts = {batch.prompts[i].id for i in missing}
        missing = [i for i, prompt in enumerate(batch.prompts) if prompt.id in prompts]
    return batch.take(missing)


# -- judgements -----------------------------------------------------------------------------------


def judgement_steps(round: "Round", judging: Step, label: str) -> Judgements:
    """Where what a judge is told in the step `judging` is recorded."""
    name = f"{label}-judgements" if label else "judgements"
    args = {"judging": judging.fingerprint}
    return Judgements(round.step("prompts", name, args, 0), round.step("generate", name, args, 0))


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
    without: Verdict | None = None
    """The first without a reward."""

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
            self.without = self.without or verdicts[0]

    @property
    def mean(self) -> float | None:
        """Mean reward of the scored; None where there is none."""
        return self.total / self.scored if self.scored else None

    def check(self, limits: JudgingConfig, total: int) -> None:
        """DataError if, of `total` samples, the judge failed on too many or left too many unscored.

        Told as soon as it is certain, and not before.
        """
        check_failures(self.count, self.unscored, self.failed, limits.max_failure_rate, total)
        check_scored(self.count, self.unscored, self.without, limits.max_unscored, total)

    def summary(self, judge: str) -> dict[str, Any]:
        """What a step of verdicts says of them, `judge` being whose they are."""
        return {
            "judge": judge,
            "scored": self.scored,
            "unscored": dict(self.unscored),
            "reward_mean": self.mean,
        }
