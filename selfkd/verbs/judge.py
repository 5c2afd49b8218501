"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selfkd.enginecalls import EngineCalls, Told
from selfkd.judging import FAILURES, JudgeSpec, check_failures, check_scored
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

    `calls` answers a judge that asks the sampler, and `told` is where its judgements go. In a step
    that is not finished, samples that the judge failed on before are judged again. DataError as
    soon as the failures, or the samples without a reward, are certain to be more than may be.
    """
    if calls and calls.policy.name != samples.policy:
        samples.wait()  # the engine holds one policy at a time
    step.started = time.monotonic()
    found = {index: read_rows(step.read(index), Verdict) for index in step.shards()}
    owed: list[tuple[int, list[Sample]]] = []
    waited = 0.0

    def batches() -> Iterator[list[Sample]]:
        nonlocal waited
        waiting = time.monotonic()
        for index, batch in samples.batches():
            waited += time.monotonic() - waiting
            if missing := _missing(judge, batch, found.get(index, [])):
                owed.append((index, batch))
                yield missing
            waiting = time.monotonic()
        waited += time.monotonic() - waiting

    for position, verdicts in enumerate(round.run.judge_batches(judge, batches(), calls)):
        index, batch = owed[position]
        if calls and told:
            _record(round, told, index, calls.policy.name, calls.told(s.id for s in batch))
        known = {v.sample_id: v for v in [*found.get(index, []), *verdicts]}
        found[index] = [known[s.id] for s in batch]
        step.write(index, rows_table(found[index], VERDICTS))
        recorded = _all(found)
        _check(round, recorded, samples.count)
        rewards = _rewards(recorded)
        mean = float(np.mean(rewards)) if rewards else None
        round.progress(step, len(recorded), samples.count, reward_mean=mean)
    recorded = _all(found)
    _check(round, recorded, len(recorded))
    seconds = time.monotonic() - step.started - waited
    if told:
        _finish(round, told, calls.policy.name if calls else "")
    round.finish(step, verdict_summary(recorded, judge.spec), seconds=seconds)


def _missing(judge: JudgeSpec, batch: list[Sample], verdicts: Sequence[Verdict]) -> list[Sample]:
    """Samples of a shard that a verdict is still owed for."""
    known = {v.sample_id for v in verdicts if v.status not in FAILURES}
    missing = [s for s in batch if s.id not in known]
    if judge.writes:
        return batch if missing else []  # its judgements are recorded by whole shards
    if judge.compares:
        prompts = {s.prompt.id for s in missing}
        return [s for s in batch if s.prompt.id in prompts]
    return missing


def _check(round: "Round", verdicts: Sequence[Verdict], total: int) -> None:
    limits = round.run.config.judging
    check_failures(verdicts, limits.max_failure_rate, total)
    check_scored(verdicts, limits.max_unscored, total)


def _all(shards: Mapping[int, Sequence[Verdict]]) -> list[Verdict]:
    return [verdict for index in sorted(shards) for verdict in shards[index]]


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
