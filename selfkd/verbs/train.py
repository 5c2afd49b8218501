"""Makes a policy from an objective's examples, or says why the old one stays."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from selfkd.errors import DataError, Diverged
from selfkd.ledger import Step
from selfkd.objectives import Objective
from selfkd.policies import Policy
from selfkd.records import EXAMPLES, rows_table
from selfkd.rundir import of_verb, round_steps
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
    if not step.has(0):
        step.write(0, rows_table(objective.examples(run.setting.tokenizer), EXAMPLES))
    if not step.read(0).num_rows:
        _no_signal(round, step, objective.missing)
        return
    name = f"round-{round.number + 1}"
    report = run.policies.committed(name, step.fingerprint)
    if report is None:
        job = TrainJob(
            objective=objective.name,
            objective_options=objective.settings(),
            example_files=(str(step.shard_path(0)),),
            start_path=str(origin.path),
            out_dir=str(run.policies.staging(name)),
            log_file=str(step.path / "log.jsonl"),
            seed=run.config.seed * 1000 + round.number,
            options=options,
            max_steps=steps,
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


_NOTHING = {"steps": 0, "examples": 0}


def _no_signal(round: "Round", step: Step, missing: str) -> None:
    if round.run.config.on_no_signal == "stop":
        raise DataError(
            f"no signal: round {round.number} {missing}{_dropped(round)}, so there is nothing to "
            "train on",
            where=str(step.path.parent),
            remedy=f"see why with `selfkd show {round.run.ledger.path} --round {round.number} "
            "--dropped`, or set on_no_signal=continue",
        )
    round.finish(step, {"policy": round.policy, "no_signal": True, **_NOTHING})


def _dropped(round: "Round") -> str:
    """Why the round's samples were dropped, the commonest reason first."""
    counts: Counter[str] = Counter()
    for step in of_verb(round_steps(round.run.ledger.path, round.number), "keep"):
        counts.update(step.summary.get("dropped", {}))
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return f" ({reasons})" if reasons else ""


def _progress(round: "Round", step: Step, row: dict[str, Any]) -> None:
    round.progress(step, row["step"], row["total_steps"], loss=row["loss"])


def _report(result: TrainReport) -> dict[str, Any]:
    names = ("steps", "examples", "tokens", "loss_first", "loss_last", "seconds")
    return {name: getattr(result, name) for name in names}
