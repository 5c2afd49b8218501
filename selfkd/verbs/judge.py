"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selfkd.enginecalls import EngineCalls, Told
from selfkd.judging import JudgeSpec, check_failures
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
    owed: list[tuple[int, list[Sample]]] = []
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

    scores = _rewards(_recorded(step))
    done = sum(table.num_rows for table in step.tables())
    for position, verdicts in enumerate(round.run.judge_batches(judge, batches(), calls)):
        index, batch = owed[position]
        if calls and told:
            _record(round, told, index, calls.policy.name, calls.told(s.id for s in batch))
        step.write(index, rows_table(verdicts, VERDICTS))
        done += len(verdicts)
        scores += _rewards(verdicts)
        mean = float(np.mean(scores)) if scores else None
        round.progress(step, done, samples.count, reward_mean=mean)
    verdicts = _recorded(step)
    check_failures(verdicts, round.run.config.judging.max_failure_rate)
    seconds = time.monotonic() - step.started - waited
    if told:
        _finish(round, told, calls.policy.name if calls else "")
    round.finish(step, verdict_summary(verdicts, judge.spec), seconds=seconds)


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
