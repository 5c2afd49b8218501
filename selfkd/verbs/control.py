"""Has the controls of a round judged, right after its samples and by the same judge."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from selfkd.batches import Batch
from selfkd.controls import CONTROL, blind, check, failing, plant
from selfkd.enginecalls import EngineCalls
from selfkd.errors import DataError
from selfkd.judgeprompts import forged_verdict
from selfkd.judging import JudgeSpec
from selfkd.ledger import Step
from selfkd.policies import Policy
from selfkd.records import Sample, Verdict, prompts_table, read_rows, samples_table
from selfkd.rundir import ANCHORS, AUDIT, CONTROLS, HELDOUT
from selfkd.tables import Anchors, Samples, Scored
from selfkd.verbs.judge import Tally

if TYPE_CHECKING:
    from selfkd.round import Round


def watch_judge(
    round: "Round", samples: Samples, scored: Scored, judge: JudgeSpec, asked: Policy | None
) -> None:
    """Once a round, have the run's judge judge controls too, and samples of the first round again,
    if the config asks for them."""
    label = scored.step.label
    if judge.identity() == round.run.judge.identity() and label not in (HELDOUT, AUDIT, ANCHORS):
        _add_controls(round, scored, judge, asked)
    most = round.run.config.judging.anchors
    if label or not most or round.anchored:
        return
    round.anchored = True
    if round.number == 0:
        round.run.anchors = Anchors(samples, most)
    elif round.run.anchors is not None:
        round.judge(round.run.anchors, judge, label=ANCHORS)


def _add_controls(round: "Round", scored: Scored, judge: JudgeSpec, asked: Policy | None) -> None:
    options = round.run.config.controls
    if not options.per_round or round.controlled:
        return
    round.controlled = True
    args = {
        "scored": scored.step.fingerprint,
        "judge": judge.identity(),
        "controls": options.model_dump(exclude={"action"}),
    }
    verbs = ("prompts", "generate", "judge")
    prompts, planted, judged = (round.step(verb, CONTROLS, args, 0) for verb in verbs)
    scored.then = lambda: judge_controls(
        round, prompts, planted, judged, scored, judge, round.run.calls_for(judge, asked)
    )


def judge_controls(
    round: "Round",
    prompts: Step,
    planted: Step,
    judged: Step,
    scored: Scored,
    judge: JudgeSpec,
    calls: EngineCalls | None,
) -> None:
    """Plant the controls, have them judged, and stop a run whose config says so if they fail.

    Each of the three steps is recorded once; DataError is raised again as often as this is called.
    """
    options = round.run.config.controls
    if not planted.finished:
        rewards = {id: v.reward for id, v in scored.verdicts.items()}
        forged = forged_verdict(judge, options.score)
        _record(round, prompts, planted, plant(scored.samples.rows, rewards, options, forged))
    if not judged.finished:
        known = list({p.id: p for p in scored.samples.prompts}.values())
        controls = Samples(planted, known, 1, lambda: iter(()), CONTROL).rows
        judged.started = time.monotonic()
        if controls and not judged.has(0):
            shown = blind(controls, scored.samples.rows[0].policy)
            (table,) = round.run.judge_batches(judge, iter([Batch.of(shown)]), calls)
            judged.write(0, table)
        verdicts = [v for table in judged.tables() for v in read_rows(table, Verdict)]
        by_id = {v.sample_id: v.reward for v in verdicts}
        results = check([(c.view, c.prompt.id, by_id[c.id]) for c in controls], options)
        summary = Tally.of(judged).summary(judge.spec)
        round.finish(judged, {**summary, "controls": {k: asdict(r) for k, r in results.items()}})
        if failed := failing(judged.summary["controls"]):
            text = f"judge {judge.name!r} fails controls: {failed}"
            round.run.emit("message", text=text, level="warning")
    failed = failing(judged.summary["controls"])
    if failed and options.action == "stop":
        raise DataError(
            f"judge {judge.name!r} fails the controls of round {round.number}: {failed}",
            where=str(judged.path),
            remedy=f"see them with `selfkd show {round.run.ledger.path} --round {round.number} "
            "--controls`, mend the judge, or go on with controls.action=warn",
        )


def _record(round: "Round", prompts: Step, planted: Step, controls: Sequence[Sample]) -> None:
    asked = list({c.prompt.id: c.prompt for c in controls}.values())
    if not prompts.finished:
        prompts.write(0, prompts_table(asked))
        round.finish(prompts, {"prompts": len(asked), "too_long": 0})
    planted.write(0, samples_table(controls))
    counts = {"prompts": len(asked), "samples": len(controls), "tokens": 0, "truncated": 0}
    round.finish(planted, counts)
