"""Makes a policy from an objective's examples, or says why the old one stays."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfkd.distillation import GKD
from selfkd.errors import DataError, Diverged
from selfkd.ledger import Step
from selfkd.objectives import Objective
from selfkd.policies import PROBE, STATE, Policy
from selfkd.probe import probe_texts
from selfkd.records import EXAMPLES, Example, rows_table
from selfkd.rundir import APART, STATES, of_verb, round_steps
from selfkd.segments import Segment
from selfkd.tables import BLOCK
from selfkd.training.base import Probe, StatesFiles, Stretch, TrainJob, TrainOptions, TrainReport
from selfkd.verbs.prompts import DROPPED

if TYPE_CHECKING:
    from selfkd.round import Round


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training starts from, is held to, and may take."""

    start: Policy
    """What the round trains."""
    reached: Policy
    """What stays if nothing is learnt: the round's own policy, or what its last segment made."""
    ref: Policy | None
    options: TrainOptions
    steps: int | None
    segment: Segment | None

    @property
    def here(self) -> Policy:
        """What the training goes on from."""
        return self.reached if "+" in self.reached.name else self.start


def train_policy(round: "Round", step: Step, objective: Objective, plan: Plan) -> None:
    """Train and commit `round-{number + 1}`, or what leads there; its examples are recorded first.

    With no example, or a training that diverges, what was reached stays, and the run stops or goes
    on as the config says.
    """
    run = round.run
    examples = _record_examples(step, objective.examples(run.setting.tokenizer))
    if not examples:
        _no_signal(round, step, objective.missing, plan)
        return
    name = plan.segment.makes if plan.segment else f"round-{round.number + 1}"
    report = run.policies.committed(name, step.fingerprint)
    steps = _steps(plan, examples)
    age = _staleness(round, objective, plan, steps)
    if report is None:
        job = _job(round, step, objective, plan, name, steps)
        try:
            result = run.train(job, lambda row: _progress(round, step, row))
        except Diverged as error:
            if run.config.on_bad_training == "stop":
                raise
            kept = _what_stays(round, step, plan)
            text = f"the training of round {round.number} diverged, {kept} stays: {error}"
            run.emit("message", text=text, level="warning")
            round.finish(step, {"policy": kept, "diverged": str(error), **_NOTHING})
            return
        report = _report(result)
        canary = [(list(tokens), list(expected)) for tokens, expected in result.canary]
        done = plan.segment.first + plan.segment.steps if plan.segment else None
        run.policies.commit(name, step.fingerprint, report, canary, plan.start.name, done)
    round.finish(step, {"policy": name, "start": plan.here.name, **report, **age})


def _steps(plan: Plan, examples: int) -> int:
    """Optimiser steps: as many as the loop asks for, else the config's epochs give."""
    wanted = plan.steps or plan.options.steps(examples)
    return min(wanted, plan.segment.steps) if plan.segment else wanted


def _job(
    round: "Round", step: Step, objective: Objective, plan: Plan, name: str, steps: int
) -> TrainJob:
    policies, segment = round.run.policies, plan.segment
    staged = policies.staging(name)
    stretch = None
    if segment and segment.total > segment.steps:
        assert plan.here.path  # raises where the weights were let go
        here = plan.here.name
        going_on = here != plan.start.name
        stretch = Stretch(
            first=segment.first,
            total=segment.total,
            state_from=str(round.run.ledger.policy_dir(here) / STATE) if going_on else None,
            state_to=None if segment.last else str(staged / STATE),
        )
    return TrainJob(
        objective=objective.name,
        objective_options=objective.settings(),
        example_files=tuple(str(step.shard_path(i)) for i in step.shards()),
        start_path=str(plan.start.path),
        out_dir=str(staged),
        log_file=str(step.path / "log.jsonl"),
        seed=round.run.config.seed * 1000 + round.number,
        options=plan.options,
        max_steps=steps,
        merged_dir=str(policies.staging_merged(name)) if plan.options.adapter_only else None,
        ref_path=str(plan.ref.path) if plan.ref else None,
        stretch=stretch,
        probe=_probe(round, plan, staged) if not segment or segment.last else None,
        states=_states(round, step, objective, plan),
        fsdp=round.run.config.cluster.trainer_fsdp,
    )


def _states(round: "Round", step: Step, objective: Objective, plan: Plan) -> StatesFiles | None:
    """Where the teacher's states are: of this very step, if it was interrupted, and of others."""
    if not (plan.ref and isinstance(objective, GKD) and objective.keep_states):
        return None
    run = round.run.ledger.path
    done = [s for n in range(round.number + 1) for s in of_verb(round_steps(run, n), "train")]
    same = [s.path for s in done if s.finished and s.args().get("ref") == plan.ref.fingerprint]
    files = [folder / STATES for folder in (step.path, *same)]
    return StatesFiles(tuple(str(f) for f in files if f.exists()), str(step.path / STATES))


def _probe(round: "Round", plan: Plan, staged: Path) -> Probe:
    ledger, base = round.run.ledger, round.policy == "base"
    return Probe(
        texts=probe_texts(ledger.path),
        from_base=plan.start.name == "base",
        previous=None if base else str(ledger.policy_dir(round.policy) / PROBE),
        out=str(staged / PROBE),
    )


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


def _no_signal(round: "Round", step: Step, missing: str, plan: Plan) -> None:
    run = round.run
    if run.config.on_no_signal == "stop":
        dropped, long = _dropped(round), _too_long(round)
        reasons = f" ({', '.join(dropped + long)})" if dropped or long else ""
        remedy = f"see why with `selfkd show {run.ledger.path} --round {round.number} --dropped`"
        if long and not dropped:
            remedy = "shorten them, raise engine.max_model_len or lower sampling.max_tokens"
        raise DataError(
            f"no signal: round {round.number} {missing}{reasons}, so there is nothing to train on",
            where=str(step.path.parent),
            remedy=f"{remedy}, or set on_no_signal=continue",
        )
    kept = _what_stays(round, step, plan)
    round.finish(step, {"policy": kept, "no_signal": True, **_NOTHING})


def _what_stays(round: "Round", step: Step, plan: Plan) -> str:
    """The policy that a training without result leaves; the round's own name for it at its end."""
    if not (plan.segment and plan.segment.last and "+" in plan.reached.name):
        return plan.reached.name
    round.run.policies.adopt(plan.reached.name, plan.segment.makes, step.fingerprint)
    return plan.segment.makes


def _staleness(round: "Round", objective: Objective, plan: Plan, steps: int) -> dict[str, Any]:
    """How far behind the policy in training the policies were that sampled, in optimiser steps.

    Counted at the last of `steps` steps; what none of this policy's ancestors wrote has no age.
    Raises DataError where the objective bounds it and some are older.
    """
    if not isinstance(objective, GKD):
        return {}
    writers = Counter(objective.writers())
    ages = {w: round.run.policies.age(w, plan.here.name) for w in writers}
    known = {w: age + steps - 1 for w, age in ages.items() if age is not None}
    oldest = max(known, key=lambda w: known[w], default=None)
    bound = objective.max_staleness
    if bound is not None and oldest and known[oldest] > bound:
        raise DataError(
            f"samples of {oldest} would be {known[oldest]} optimiser steps old, more than {bound}",
            where=f"round {round.number}",
            remedy="train on fresher samples, take fewer steps, or raise max_staleness",
        )
    return {"writers": dict(writers), "staleness": known[oldest] if oldest else None}


def _dropped(round: "Round") -> list[str]:
    """Why the round's samples were dropped, the commonest reason first."""
    counts: Counter[str] = Counter()
    for step in of_verb(round_steps(round.run.ledger.path, round.number), "keep"):
        counts.update(step.summary.get("dropped", {}))
    return [f"{count} {reason}" for reason, count in counts.most_common()]


def _too_long(round: "Round") -> list[str]:
    """How many of the round's prompts were never sampled, and where they are listed."""
    asked = of_verb(round_steps(round.run.ledger.path, round.number), "prompts")
    steps = [s for s in asked if s.label not in APART and s.summary.get("too_long")]
    return [f"{s.summary['too_long']} prompts too long, see {s.path.name}/{DROPPED}" for s in steps]


def _progress(round: "Round", step: Step, row: dict[str, Any]) -> None:
    round.progress(step, row["step"], row["total_steps"], loss=row["loss"])


_REPORTED = (
    "steps", "examples", "tokens", "loss_first", "loss_last", "seconds", "step_seconds",
    "kl_base", "kl_previous", "teacher_asked",
)  # fmt: skip


def _report(result: TrainReport) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _REPORTED}
