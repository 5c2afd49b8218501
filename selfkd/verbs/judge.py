"""Judges the shards of a `judge` step that are still missing, as their samples come."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from selfkd.enginecalls import EngineCalls, Told
from selfkd.judging import FAILURES, JudgeSpec
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
from selfkd.tally import Tally
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
    limits = round.run.config.judging
    tally = Tally()
    owed: list[tuple[int, list[Sample], list[Verdict]]] = []
    waited = 0.0

    def batches() -> Iterator[list[Sample]]:
        nonlocal waited
        waiting = time.monotonic()
        for index, batch in samples.batches():
            waited += time.monotonic() - waiting
            recorded = read_rows(step.read(index), Verdict) if step.has(index) else []
            missing = _missing(judge, batch, recorded)
            ids = {s.id for s in missing}
            known = [v for v in recorded if v.sample_id not in ids]
            tally.add(known)
            if missing:
                owed.append((index, batch, known))
                yield missing
            waiting = time.monotonic()
        waited += time.monotonic() - waiting

    for position, verdicts in enumerate(round.run.judge_batches(judge, batches(), calls)):
        index, batch, known = owed[position]
        if calls and told:
            _record(round, told, index, calls.policy.name, calls.told(s.id for s in batch))
        by_id = {v.sample_id: v for v in [*known, *verdicts]}
        step.write(index, rows_table([by_id[s.id] for s in batch], VERDICTS))
        tally.add(verdicts)
        tally.check(limits.max_failure_rate, limits.max_unscored, samples.count)
        round.progress(step, tally.judged, samples.count, reward_mean=tally.mean)
    tally.check(limits.max_failure_rate, limits.max_unscored, tally.judged)
    seconds = time.monotonic() - step.started - waited
    if told:
        _finish(round, told, calls.policy.name if calls else "")
    round.finish(step, tally.summary(judge.spec), seconds=seconds)


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
