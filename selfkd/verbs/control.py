"""Has the controls of a round judged, right after its samples and by the same judge."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from selfkd.controls import CONTROL, blind, check, failing, plant
from selfkd.enginecalls import EngineCalls
from selfkd.errors import DataError
from selfkd.judging import JudgeSpec
from selfkd.ledger import Step
from selfkd.records import (
    VERDICTS,
    Sample,
    Verdict,
    prompts_table,
    read_rows,
    rows_table,
    samples_table,
)
from selfkd.tables import Samples, Scored
from selfkd.tally import Tally

if TYPE_CHECKING:
    from selfkd.round import Round


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
        _record(round, prompts, planted, plant(scored.samples.rows, rewards, options))
    if not judged.finished:
        known = list({p.id: p for p in scored.samples.prompts}.values())
        controls = Samples(planted, known, 1, lambda: iter(()), CONTROL).rows
        judged.started = time.monotonic()
        if controls and not judged.has(0):
            shown = blind(controls, scored.samples.rows[0].policy)
            (verdicts,) = round.run.judge_batches(judge, iter([shown]), calls)
            judged.write(0, rows_table(verdicts, VERDICTS))
        verdicts = [v for table in judged.tables() for v in read_rows(table, Verdict)]
        by_id = {v.sample_id: v.reward for v in verdicts}
        results = check([(c.view, c.prompt.id, by_id[c.id]) for c in controls], options)
        summary = Tally(verdicts).summary(judge.spec)
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
