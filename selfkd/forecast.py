"""What a round's samples say about the gain that learning from them can bring, before it is spent.

`forecast` gives one dict; what the record cannot tell is null. Right is what gold gives a reward of
at least 1: the run's judge where it compares with references, else that of the step `judge-audit`.
A share is {"mean", "stderr", "prompts"}: a mean over the prompts whose samples gold scored, and its
standard error, s / sqrt(prompts).

round, policy     the round, and who sampled in it
prompts, samples  those that were judged
scored_share      share of the samples that have a reward
gold              name of the judge that says what is right
accuracy          share of right samples: pass@1
pass_at_k         as in `metrics`
coverage          share of prompts with a right sample: what rejection sampling can learn from
contested         share of prompts with right and wrong samples: what pairs can be made of
majority          {"accuracy", "share", "tied"}: share of prompts whose most frequent answer is
                  right (LMSI's ceiling); mean share of the votes for it; prompts with a tie
selected          share of right ones among the samples that the judge rates highest of a prompt
kept              {"kept", "coverage"} of what the recorded rule kept, as in `metrics`
agreement         of judge and gold (`selfkd.audit`); null where the judge is gold
heldout           mean held-out reward of the policy, greedy
teacher           {"plain", "privileged", "gain"}: mean share of right answers to prompts as they
                  are and with the reference shown, and their difference, a share
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfkd.config import resolve
from selfkd.errors import UsageError
from selfkd.launch import read_run
from selfkd.metrics import SUCCESS, pass_at_k, round_rows
from selfkd.rundir import AUDIT, StepRecord, of_verb, round_numbers, round_steps

Row = dict[str, Any]

FOLDER = "forecast"
"""Where a run keeps what only its forecast needs."""


class _Verdict(NamedTuple):
    prompt: str
    reward: float | None
    answer: str | None


_Verdicts = dict[str, _Verdict]
"""By sample id."""


def forecast(run_dir: Path, round: int | None = None) -> Row:
    """The figures of a round (default: the last one with samples of its own that were judged).

    UsageError where there is none.
    """
    raw, _ = read_run(run_dir)
    resolved = resolve(raw, file=str(run_dir / "run.yaml"))
    number = _chosen(run_dir, round)
    steps = round_steps(run_dir, number)
    judged = _verdicts(_judging(steps, ""))
    truth = judged if resolved.judge.gold else _verdicts(_judging(steps, AUDIT))
    gold = resolved.judge if resolved.judge.gold else resolved.gold_judge
    row = next(r for r in round_rows(run_dir) if r["round"] == number)
    right = {id: v.reward >= SUCCESS for id, v in truth.items() if v.reward is not None}
    groups: dict[str, list[str]] = defaultdict(list)
    for id in right:
        groups[truth[id].prompt].append(id)
    return {
        "round": number,
        "policy": row["policy"],
        "prompts": len({v.prompt for v in judged.values()}),
        "samples": len(judged),
        "scored_share": row["scored_share"],
        "gold": gold.name if gold and right else None,
        **_room(right, groups),
        "majority": _majority(judged, truth, right),
        "selected": _selected(judged, right, groups),
        "kept": None if row["kept"] is None else {k: row[k] for k in ("kept", "coverage")},
        "agreement": row["agreement"],
        "heldout": row["heldout_reward"],
        "teacher": _teacher(run_dir, right, groups) if number == 0 else None,
    }


def _chosen(run_dir: Path, round: int | None) -> int:
    there = [n for n in round_numbers(run_dir) if _judging(round_steps(run_dir, n), "")]
    if round is not None and round in there:
        return round
    if round is not None or not there:
        what = "no round" if round is None else f"round {round} is no round that"
        raise UsageError(
            f"{what} has judged samples of its own",
            where=str(run_dir),
            remedy=f"rounds: {', '.join(map(str, there)) or 'none'}",
        )
    return there[-1]


def _judging(steps: Sequence[StepRecord], label: str) -> list[StepRecord]:
    return [s for s in of_verb(steps, "judge") if s.label == label and s.shards()]


def _verdicts(steps: Sequence[StepRecord]) -> _Verdicts:
    """Those of the first of the steps."""
    columns = ("sample_id", "prompt_id", "reward", "answer")
    found = {}
    for table in (t for s in steps[:1] for t in s.tables(columns)):
        for row in table.to_pylist():
            found[row["sample_id"]] = _Verdict(row["prompt_id"], row["reward"], row["answer"])
    return found


def _room(right: dict[str, bool], groups: dict[str, list[str]]) -> Row:
    """How much there is to choose from."""
    if not right:
        return dict.fromkeys(("accuracy", "pass_at_k", "coverage", "contested"))
    shares = np.array([np.mean([right[id] for id in ids]) for ids in groups.values()])
    places = {prompt: i for i, prompt in enumerate(groups)}
    prompts = np.array([places[p] for p, ids in groups.items() for _ in ids])
    rewards = np.array([float(right[id]) for ids in groups.values() for id in ids])
    return {
        "accuracy": _share(shares),
        "pass_at_k": pass_at_k(prompts, rewards),
        "coverage": _share(shares > 0),
        "contested": _share((shares > 0) & (shares < 1)),
    }


def _share(values: np.ndarray) -> Row:
    """A mean over prompts, and its standard error."""
    mean = float(np.mean(values))
    error = float(np.std(values) / np.sqrt(len(values)))
    return {"mean": mean, "stderr": error, "prompts": len(values)}


def _majority(judged: _Verdicts, truth: _Verdicts, right: dict[str, bool]) -> Row | None:
    """What a vote over the answers says; of answers with as many votes the first one wins."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    known: dict[tuple[str, str], bool] = {}
    for id, verdict in judged.items():
        answer = verdict.answer if verdict.answer is not None else _answer(truth, id)
        if answer is not None:
            votes[verdict.prompt][answer] += 1
            if id in right:
                known.setdefault((verdict.prompt, answer), right[id])
    if not votes:
        return None
    winners = {prompt: counts.most_common(1)[0] for prompt, counts in votes.items()}
    hits = [known[p, a] for p, (a, _) in winners.items() if (p, a) in known]
    tied = [list(c.values()).count(winners[p][1]) > 1 for p, c in votes.items()]
    shares = [count / votes[p].total() for p, (_, count) in winners.items()]
    return {
        "accuracy": _share(np.array(hits)) if hits else None,
        "share": float(np.mean(shares)),
        "tied": int(np.sum(tied)),
    }


def _answer(verdicts: _Verdicts, id: str) -> str | None:
    return verdicts[id].answer if id in verdicts else None


def _selected(
    judged: _Verdicts, right: dict[str, bool], groups: dict[str, list[str]]
) -> Row | None:
    """Accuracy of what the judge rates highest, ties averaged."""
    found = []
    for ids in groups.values():
        rewards = {id: r for id in ids if id in judged and (r := judged[id].reward) is not None}
        if rewards:
            best = max(rewards.values())
            found.append(np.mean([right[id] for id, reward in rewards.items() if reward == best]))
    return _share(np.array(found)) if found else None


def _teacher(run_dir: Path, right: dict[str, bool], groups: dict[str, list[str]]) -> Row | None:
    """What the policy gains when it is shown the reference: what there is to distil."""
    shown = _verdicts(_judging(round_steps(run_dir / FOLDER, 0), ""))
    rewards: dict[str, list[float]] = defaultdict(list)
    for verdict in shown.values():
        if verdict.reward is not None:
            rewards[verdict.prompt].append(float(verdict.reward >= SUCCESS))
    both = [prompt for prompt in rewards if prompt in groups]
    if not both:
        return None
    privileged = np.array([np.mean(rewards[p]) for p in both])
    plain = np.array([np.mean([right[id] for id in groups[p]]) for p in both])
    return {
        "plain": float(plain.mean()),
        "privileged": float(privileged.mean()),
        "gain": _share(privileged - plain),
    }
