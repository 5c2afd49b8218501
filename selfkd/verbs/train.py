"""Makes a policy from an objective's examples, or says why the old one stays."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from selfkd.errors import DataError, Diverged
from selfkd.ledger import Step
from selfkd.objectives import Objective
from selfkd.policies import Policy
from selfkd.records import EXAMPLES, Example, rows_table
from selfkd.tables import BLOCK
from selfkd.training.base import TrainJob, TrainOptions, TrainReport

if TYPE_CHECKING:
    from selfkd.round import Round


def train_policy(
    round: "Round",
    step: Step,
    objective: Objective,
    origin: Policy,
    options: TrainOptions,
    steps: int | None,
    ref: Policy | None = None,
) -> None:
    """Train and commit `round-{number + 1}`; its examples are recorded first.

    With no example, or a training that diverges, the round's own policy stays, and the run stops
    or goes on as the config says.
    """
    run = round.run
    if not _record_examples(step, objective.examples(run.setting.tokenizer)):
        _no_signal(round, step, objective.missing)
        return
    name = f"round-{round.number + 1}"
    report = run.policies.committed(name, step.fingerprint)
    if report is None:
        adapter = options.lora_rank > 0 and options.lora_save == "adapter"
        job = TrainJob(
            objective=objective.name,
            objective_options=objective.settings(),
            example_files=tuple(str(step.shard_path(i)) for i in step.shards()),
            start_path=str(origin.path),
            out_dir=str(run.policies.staging(name)),
            log_file=str(step.path / "log.jsonl"),
            seed=run.config.seed * 1000 + round.number,
            options=options,
            max_steps=steps,
            merged_dir=str(run.policies.staging_merged(name)) if adapter else None,
            ref_path=str(ref.path) if ref else None,
        )
        try:
            result = run.train(job, lambda row: _progress(round, step, row))
        except Diverged as error:
            if run.config.on_bad_training == "stop":
                raise
            round.finish(step, {"policy": round.policy, "diverged": str(error), **_NOTHING})
            return
        report = _report(result)
        canary = [(list(tokens), list(expected)) for tokens, expected in result.canary]
        run.policies.commit(name, step.fingerprint, report, canary, origin.name)
    round.finish(step, {"policy": name, "start": origin.name, **report})


def _record_examples(step: Step, examples: Iterable[Example]) -> int:
    """Write what is trained on, block by block, where it is not yet; the count of it."""
    waiting = iter(examples)
    count = 0
    for index in itertools.count():
        part = list(itertools.islice(waiting, BLOCK))
        if not step.has(index) and (part or not index):
            step.write(index, rows_table(part, EXAMPLES))
        count += len(part)
        if len(part) < BLOCK:
            return count
    raise AssertionError


_NOTHING = {"steps": 0, "examples": 0}


def _no_signal(round: "Round", step: Step, missing: str) -> None:
    if round.run.config.on_no_signal == "stop":
        raise DataError(
            f"no signal: round {round.number} {missing}, so there is nothing to train on",
            where=str(step.path.parent),
            remedy=f"see why with `selfkd show {round.run.ledger.path} --round {round.number} "
            "--dropped`, or set on_no_signal=continue",
        )
    round.finish(step, {"policy": round.policy, "no_signal": True, **_NOTHING})


def _progress(round: "Round", step: Step, row: dict[str, Any]) -> None:
    round.progress(step, row["step"], row["total_steps"], loss=row["loss"])


def _report(result: TrainReport) -> dict[str, Any]:
    names = ("steps", "examples", "tokens", "loss_first", "loss_last", "seconds", "step_seconds")
    return {name: getattr(result, name) for name in names}
