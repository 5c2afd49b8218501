"""Recorded samples under another judge or other rules: a fork in which nothing is sampled.

The fork shares the samples of every round with the run that they come from, whatever was trained on
them then; what it holds of its own are verdicts and decisions. `again.json` says what is to be done
for each round, so that a fork that was stopped can go on. There is nothing in it to train from:
`selfkd fork RUN --round N judge=NEW` goes on from a round, and takes the round's samples with it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selfkd.config import resolve
from selfkd.errors import DataError, UsageError
from selfkd.files import make_directory, share, write_json
from selfkd.judging import JudgeSpec
from selfkd.launch import read_run, staged_run
from selfkd.ledger import Step
from selfkd.records import Prompt, read_prompts
from selfkd.round import Round
from selfkd.rules import Rule
from selfkd.rulesyntax import parse_rule
from selfkd.run import Run
from selfkd.rundir import APART, AUDIT, CONTROLS, StepRecord, read_json, round_numbers, round_steps
from selfkd.tables import Samples, Scored

PLAN = "again.json"
_SHARED = ("prompts", "generate", "gate")
"""Verbs whose steps say the same whoever judges."""


@dataclass
class _Round:
    """What is to be done for one round."""

    policy: str = "base"
    shared: int = 0
    """Steps taken over as they are: the first ones of the round."""
    judge: list[dict[str, Any]] = field(default_factory=list)
    """`samples` to be judged again, and `was`: the steps that judged them (all fingerprints)."""
    audit: bool = False
    """Whether gold judges the own samples as well, to compare the two."""
    keep: list[dict[str, Any]] = field(default_factory=list)
    """`label`, `rule` and `parts` (fingerprints of steps) of each decision to be made again."""


def rejudge_run(path: Path, judge: JudgeSpec, name: str | None) -> tuple[Path, list[str]]:
    """A fork of `path` in which `judge` is to score what is recorded, and what to know about it.

    Held-out answers keep their verdicts. Recorded rules are applied again to the new verdicts.
    """
    raw = _recorded(path)
    changed = {**raw, "judge": {"use": judge.spec, **judge.options}}
    gold = resolve(raw, file=str(path / "run.yaml")).gold_judge
    if raw.get("gold_judge") is None and gold:
        changed["gold_judge"] = raw["judge"]
    rounds: dict[int, _Round] = {}
    notes: list[str] = []
    known: set[str] = set()
    chosen: dict[int, list[StepRecord]] = {}
    for number in round_numbers(path):
        steps = _finished(path, number)
        chosen[number] = [s for s in steps if _independent(s)]
        there = {s.args_hash for s in map(_Known, chosen[number])}
        plan = _Round(_policy(steps), len(chosen[number]))
        plan.audit = bool(gold) and not judge.gold and not any(s.label == AUDIT for s in steps)
        judged: dict[str, list[str]] = {}
        for step in map(_Known, steps):
            if _by_judge(step) and step.args["samples"] in there:
                judged.setdefault(step.args["samples"], []).append(step.args_hash)
        plan.judge = [{"samples": samples, "was": was} for samples, was in judged.items()]
        known |= {*there, *(fp for was in judged.values() for fp in was)}
        plan.keep, said = _decisions(steps, known)
        rounds[number], notes = plan, notes + said
    lineage = {"round": 0, "again": {"judge": changed["judge"]}}
    return _fork(path, changed, lineage, name, "rejudged", chosen, rounds), notes


def refilter_run(path: Path, rules: str, name: str | None) -> Path:
    """A fork of `path` in which `rules` decide anew what is kept, by the recorded verdicts."""
    raw = _recorded(path)
    rule = parse_rule(rules)
    rounds: dict[int, _Round] = {}
    chosen: dict[int, list[StepRecord]] = {}
    for number in round_numbers(path):
        steps = _finished(path, number)
        chosen[number] = [s for s in steps if s.verb in (*_SHARED, "judge")]
        plan = _Round(_policy(steps), len(chosen[number]))
        for step in map(_Known, steps):
            if step.record.verb == "keep" and not step.record.label:
                parts = _parts(step)
                plan.keep = [{"label": "", "rule": rule.name, "parts": parts}]
        rounds[number] = plan
    if not any(plan.keep for plan in rounds.values()):
        raise UsageError(
            "no round has decided on its samples", where=str(path), remedy="let one be finished"
        )
    lineage = {"round": 0, "again": {"rules": rule.name}}
    return _fork(path, raw, lineage, name, "refiltered", chosen, rounds)


def judge_again(run: Run) -> None:
    """Do what is planned for each round and not done yet."""
    plans = read_json(run.ledger.path / PLAN)
    known: dict[str, Scored | Samples] = {}
    prompts: dict[str, list[Prompt]] = {}
    for number, plan in ((int(n), _Round(**p)) for n, p in plans.items()):
        round = Round(run, number, plan.policy)
        for record in _shared(run.ledger.path, number, plan.shared):
            step = run.ledger.step(number, record.verb, record.label, record.args())
            _take(step, record.args(), known, prompts)
        for task in plan.judge:
            samples = known[task["samples"]]
            assert isinstance(samples, Samples)
            scored = round.judge(samples, run.judge)
            known |= dict.fromkeys(task["was"], scored)
            if plan.audit and not samples.step.label:
                round.audit(samples, run.gold_judge)
        for decision in plan.keep:
            parts = [known[fingerprint] for fingerprint in decision["parts"]]
            rule = parse_rule(decision["rule"])
            if isinstance(rule, Rule):
                round.keep(parts[0], rule, label=decision["label"])
            else:
                round.pair(*parts, rule=rule, label=decision["label"])


# -- planning -------------------------------------------------------------------------------------


class _Known:
    """A recorded step with its arguments read."""

    def __init__(self, record: StepRecord) -> None:
        recorded = read_json(record.path / "step.json")
        self.record = record
        self.args: dict[str, Any] = recorded["args"]
        self.args_hash: str = recorded["fingerprint"]


def _recorded(path: Path) -> dict[str, Any]:
    """The config of a run that has sampled something."""
    raw, _ = read_run(path)
    if not round_numbers(path):
        raise UsageError("nothing is recorded yet", where=str(path), remedy="let it sample a round")
    return raw


def _finished(path: Path, number: int) -> list[StepRecord]:
    return [s for s in round_steps(path, number) if s.finished]


def _policy(steps: Sequence[StepRecord]) -> str:
    sampled = [s for s in steps if s.verb == "generate" and not s.label]
    return str(sampled[0].args().get("policy_name", "base")) if sampled else "base"


def _independent(step: StepRecord) -> bool:
    """Whether a step says the same whoever judges the policy's own samples."""
    if step.label == CONTROLS or step.label.endswith("judgements"):
        return False
    return step.verb in _SHARED or (step.verb == "judge" and step.label in (*APART, AUDIT))


def _by_judge(step: _Known) -> bool:
    """Whether a step holds verdicts of the run's judge, and not ones that its loop worked out."""
    own = step.record.verb == "judge" and step.record.label not in (*APART, AUDIT)
    return own and "rewards" not in step.args


def _parts(step: _Known) -> list[str]:
    scored = step.args["scored"]
    return scored if isinstance(scored, list) else [scored]


def _decisions(
    steps: Sequence[StepRecord], known: set[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The decisions that can be made again, and which cannot."""
    found, notes = [], []
    for step in map(_Known, steps):
        if step.record.verb != "keep":
            continue
        rule, label, parts = step.args["rule"], step.record.label, _parts(step)
        where = f"round {step.record.round}: {step.record.path.name}"
        if not known >= {*parts}:
            notes.append(f"{where} decided on what is not judged again, and is left out")
            continue
        try:
            parse_rule(rule)
        except UsageError:
            notes.append(f"{where} used a rule that has no name ({rule}), and is left out")
            continue
        found.append({"label": label, "rule": rule, "parts": parts})
    return found, notes


def _fork(
    path: Path,
    raw: dict[str, Any],
    lineage: dict[str, Any],
    name: str | None,
    what: str,
    chosen: dict[int, list[StepRecord]],
    rounds: dict[int, _Round],
) -> Path:
    resolved = resolve(raw, file=str(path / "run.yaml"))
    with staged_run(path, resolved, lineage, name, what) as staged:
        for number, steps in chosen.items():
            for order, step in enumerate(steps, 1):
                _, _, rest = step.path.name.partition("-")
                target = staged.path / "rounds" / f"{number:03d}" / f"{order:02d}-{rest}"
                share(step.path, target)
        if resolved.judge.engine and (path / "policies").exists():
            share(path / "policies", staged.path / "policies")
        make_directory(staged.path)
        write_json(staged.path / PLAN, {str(n): asdict(plan) for n, plan in rounds.items()})
    return staged.target


# -- doing ----------------------------------------------------------------------------------------


def _shared(path: Path, number: int, count: int) -> list[StepRecord]:
    """The steps that were taken over; DataError where one of them is gone."""
    steps = round_steps(path, number)[:count]
    whole = [
        s for i, s in enumerate(steps, 1) if s.finished and s.path.name.startswith(f"{i:02d}-")
    ]
    if len(whole) < count:
        raise DataError(
            f"a step of round {number} that was taken over is missing",
            where=str(path),
            remedy="delete this run, and make it anew from the one that it comes from",
        )
    return whole


def _take(
    step: Step,
    args: dict[str, Any],
    known: dict[str, Scored | Samples],
    prompts: dict[str, list[Prompt]],
) -> None:
    """Make a step that was taken over usable, by its fingerprint."""
    if step.verb == "prompts":
        prompts[step.fingerprint] = [p for t in step.tables() for p in read_prompts(t)]
    elif step.verb == "generate" and args.get("prompts") in prompts:
        policy = str(args.get("policy_name", "base"))
        asked = prompts[args["prompts"]]
        known[step.fingerprint] = Samples(
            step, asked, int(args.get("n", 1)), lambda: iter(()), policy
        )
    elif step.verb == "judge":
        samples = known.get(args.get("samples", ""))
        if isinstance(samples, Samples):
            known[step.fingerprint] = Scored(step, samples, lambda: None)
