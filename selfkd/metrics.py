"""The figures of each round, computed from what the run recorded.

`round_rows` gives one dict a round, which is also the schema of `selfkd curves --json` ("rounds")
and of `metrics.jsonl`. Keys are stable; what does not exist (yet) is null. Own samples are those
of steps without a label; rewards of samples that a judge could not score count nowhere as 0.

round           number; round 0 is the base model
policy          the policy whose samples, or else held-out answers, the round holds
samples         own samples
scored          own samples with a reward
unscored        own samples judged without a reward
unscored_by     {status: count} of the unscored
scored_share    scored / (scored + unscored): how much of the round the judge's figures speak for
kept            samples kept, over all keep steps
dropped         {reason: count} of the others
reward_mean     mean reward of the scored; reward_p10, _p50, _p90: quantiles, interpolated
accept_rate     kept / (kept + dropped)
coverage        share of prompts, among those decided on, with at least one kept sample
heldout_reward  mean reward of the scored held-out answers of the policy measured in this round
heldout_scored  held-out answers with a reward
heldout_stderr  standard error of heldout_reward: s / sqrt(heldout_scored)
pass_at_k       {"k": 1 - C(n-c, k) / C(n, k)}: n scored samples of a prompt, c of them with a
                reward of at least 1, averaged over the prompts with n >= k; k = 1, 2, 4, ... n
length_mean     tokens a completion; length_p95: 95 % quantile
truncated       share of completions that were cut at the token limit
distinct_2      distinct pairs of adjacent tokens / all such pairs, over all completions
unique          share of distinct completions among a prompt's samples, averaged over the prompts
                with at least two; null where there is none
tokens          tokens sampled
seconds         {"generate", "judge", "train", "evaluate"}: wall-clock of the finished steps;
                evaluate holds all held-out steps, judge is without waiting for samples
kl_base, kl_previous  divergence of the policy from the base and from that of the round before, nats
                a token on a few fixed texts (`training/probe.py`); null where it was not measured
train           {"steps", "examples", "loss_first", "loss_last", "start", "policy"} over all
                trainings of the round, kl_base and kl_previous of the policy they made, "diverged":
                why the first that was refused was (else null), and, where there was nothing to
                train on, "no_signal": true
pairs           {"pairs", "prompts", "margin_mean", "chosen_length", "rejected_length"} of what was
                compared: pairs made, prompts they are of, mean gap in reward, mean tokens
agreement       of the judge with gold where both scored the same samples (step `judge-audit`), else
                null: {"samples", "coverage", "auc", "pairs", "pair_accuracy",
                "calibration"}, see `selfkd.audit`
gate            {"policy", "decision", "best", "p_value", "delta"}
controls        {kind: {"count", "failed", "reward_mean", "fails"}} of the planted controls: those
                that could be compared, those that failed, whether more failed than may; or null
prompts, reward_stderr, reward_best, reward_best_stderr, reward_top, reward_length, similarity,
overlap, swap, anchors  what alarms look at, and what tells of the judge: see `selfkd.signals`
extra           {label: {"samples", "scored", "kept", "reward_mean"}} of further sampling in the
                round, such as STaR's rationalisation
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from selfkd.alarmconfig import AlarmConfig
from selfkd.alarms import Alarm, alarms
from selfkd.audit import audit_figures
from selfkd.diversity import Tokens, distinct_2, unique
from selfkd.records import content_hash
from selfkd.rundir import (
    ANCHORS,
    APART,
    CONTROLS,
    HELDOUT,
    StepRecord,
    codes,
    counts,
    of_verb,
    read_columns,
    read_config,
    read_lines,
    round_numbers,
    round_steps,
    run_facts,
)
from selfkd.signals import anchor_figures, overlap, reward_signals, similarity, swap_figures

__all__ = ["Alarm", "alarms", "curves_document", "recorded_rows", "round_rows", "run_alarms"]

Row = dict[str, Any]

SUCCESS = 1.0
"""Smallest reward that pass@k counts as solved."""

_FINISHED: dict[str, Row] = {}
"""Rows of rounds all of whose steps are finished, by the hash of their manifests."""


def curves_document(run_dir: Path) -> dict[str, Any]:
    """What `selfkd curves --json` prints: `run_facts` of the run, and its `rounds`."""
    return {**run_facts(run_dir), "rounds": round_rows(run_dir)}


def round_rows(run_dir: Path) -> list[Row]:
    """One row a round, in order, unfinished steps included; see the top of this file.

    Raises DataError that names the file where a record is damaged.
    """
    found = [(n, round_steps(run_dir, n)) for n in round_numbers(run_dir)]
    return _with_distances([_round_row(number, steps) for number, steps in found])


def recorded_rows(run_dir: Path) -> list[Row]:
    """`round_rows`, but a complete round as `metrics.jsonl` has it: no sample is read for those.

    A round is taken from the file only where it is complete and has every key of today; the file
    holds what `round_rows` gave when the round ended, so the figures are the same.
    """
    known = _known_rows(run_dir)
    rounds = [(n, round_steps(run_dir, n)) for n in round_numbers(run_dir)]
    rows = [
        (known.get(n) if _is_complete(steps) else None) or _round_row(n, steps)
        for n, steps in rounds
    ]
    return _with_distances(rows)


def complete_rows(run_dir: Path) -> list[Row]:
    """Those of `recorded_rows` that are of complete rounds."""
    known = _known_rows(run_dir)
    rounds = [(n, round_steps(run_dir, n)) for n in round_numbers(run_dir)]
    rows = [known.get(n) or _round_row(n, steps) for n, steps in rounds if _is_complete(steps)]
    return _with_distances(rows)


def _with_distances(rows: list[Row]) -> list[Row]:
    """The rows, in order, with what the trainings before each measured of its policy."""
    known: dict[str, float | None] = {"base": 0.0}
    before: Row = {"policy": None, "train": None}
    for row in rows:
        made: Row = before["train"] or {"policy": None}
        if made.get("kl_base") is not None:
            known[made["policy"]] = made["kl_base"]
        row["kl_base"] = known.get(row["policy"])
        row["kl_previous"] = None
        if row["policy"] and row["policy"] == before["policy"]:
            row["kl_previous"] = 0.0
        elif row["policy"] == made["policy"]:
            row["kl_previous"] = made.get("kl_previous")
        before = row
    return rows


def _known_rows(run_dir: Path) -> dict[int, Row]:
    keys = _figures(0, []).keys()
    lines = read_lines(run_dir / "metrics.jsonl")
    return {row["round"]: row for row in lines if row.keys() == keys}


def _is_complete(steps: Sequence[StepRecord]) -> bool:
    return all(s.finished for s in steps) and any(s.verb == "round" for s in steps)


def run_alarms(run_dir: Path, rows: Sequence[Row]) -> list[Alarm]:
    """The alarms of a run's rows, by the thresholds of its own config."""
    section = read_config(run_dir).get("alarms") or {}
    try:
        return alarms(rows, AlarmConfig.model_validate(section))
    except ValidationError:  # of a version that has other alarms
        return alarms(rows)


def _round_row(number: int, steps: Sequence[StepRecord]) -> Row:
    if not all(step.finished for step in steps):
        return _figures(number, steps)
    key = content_hash([number, *(step.manifest for step in steps)], 32)
    if key not in _FINISHED:
        _FINISHED[key] = _figures(number, steps)
    return copy.deepcopy(_FINISHED[key])


def _figures(number: int, steps: Sequence[StepRecord]) -> Row:
    steps = [s for s in steps if s.finished or s.shards()]
    heldout = [s for s in steps if s.label == HELDOUT]
    planted = [s for s in steps if s.label == CONTROLS]
    again = [s for s in steps if s.label == ANCHORS]
    own = [s for s in steps if s.label not in APART]
    main = [s for s in own if not s.label]
    sampled = [*of_verb(main, "generate"), *of_verb(heldout, "generate")]
    return {
        "round": number,
        "policy": sampled[0].args().get("policy_name") if sampled else None,
        **_sample_figures(of_verb(main, "generate")),
        **_reward_figures(of_verb(main, "judge")),
        **reward_signals(of_verb(main, "generate"), of_verb(main, "judge")),
        "similarity": similarity(of_verb(main, "generate")),
        "overlap": overlap(own, heldout),
        "swap": swap_figures(of_verb(main, "judge")),
        "anchors": anchor_figures(again),
        **_keep_figures(of_verb(own, "keep")),
        **_heldout_figures(of_verb(heldout, "judge")),
        "seconds": {
            "generate": _seconds(of_verb(own, "generate")),
            "judge": _seconds(of_verb([*own, *planted, *again], "judge")),
            "train": _seconds(of_verb(own, "train")),
            "evaluate": _seconds(heldout),
        },
        "kl_base": None,
        "kl_previous": None,
        "train": _train_figures(of_verb(own, "train")),
        "pairs": _pair_figures(of_verb(main, "pair")),
        "agreement": audit_figures(of_verb(own, "judge")),
        "gate": next((s.summary for s in of_verb(steps, "gate") if s.finished), None),
        "controls": next(
            (s.summary["controls"] for s in of_verb(planted, "judge") if s.finished), None
        ),
        "extra": _extra_figures([s for s in own if s.label]),
    }


def _seconds(steps: Sequence[StepRecord]) -> float | None:
    recorded = [s.manifest["seconds"] for s in steps if s.manifest]
    return sum(recorded) if recorded else None


def _table(steps: Sequence[StepRecord], columns: Sequence[str]) -> pa.Table:
    return pa.concat_tables([s.table(columns) for s in steps])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """A numeric column as float64, null as NaN."""
    return column.to_numpy().astype(np.float64)


# -- samples --------------------------------------------------------------------------------------


def _sample_figures(steps: Sequence[StepRecord]) -> Row:
    names = ("samples", "tokens", "length_mean", "length_p95", "truncated", "distinct_2", "unique")
    if not steps:
        return dict.fromkeys(names)
    row: Row = dict.fromkeys(names) | {"samples": 0, "tokens": 0}
    shards = [Tokens(read_columns(path, Tokens.COLUMNS)) for s in steps for path in s.shards()]
    lengths = np.concatenate([np.zeros(0, np.int64), *(s.lengths for s in shards)])
    if not len(lengths):
        return row
    row |= {
        "samples": len(lengths),
        "tokens": int(lengths.sum()),
        "truncated": sum(s.truncated for s in shards) / len(lengths),
    }
    if row["tokens"]:  # an engine that gives no token ids leaves these unknown
        row |= {
            "length_mean": float(lengths.mean()),
            "length_p95": float(np.quantile(lengths, 0.95)),
            "distinct_2": distinct_2(shards),
            "unique": unique(shards),
        }
    return row


# -- verdicts and decisions -----------------------------------------------------------------------


def _reward_figures(steps: Sequence[StepRecord]) -> Row:
    quantiles = {"reward_p10": 0.1, "reward_p50": 0.5, "reward_p90": 0.9}
    names = ("scored", "unscored", "unscored_by", "scored_share", "reward_mean")
    names = (*names, *quantiles, "pass_at_k")
    if not steps:
        return dict.fromkeys(names)
    table = _table(steps, ["prompt_id", "reward", "status"])
    rewards = _floats(table.column("reward"))
    known = ~np.isnan(rewards)
    row: Row = dict.fromkeys(names) | {
        "scored": int(known.sum()),
        "unscored": int((~known).sum()),
        "unscored_by": counts(table.filter(pa.array(~known)).column("status")),
        "scored_share": float(known.mean()) if len(known) else None,
    }
    if known.any():
        row["reward_mean"] = float(rewards[known].mean())
        row |= {name: float(np.quantile(rewards[known], q)) for name, q in quantiles.items()}
        row["pass_at_k"] = pass_at_k(codes(table.column("prompt_id"))[known], rewards[known])
    return row


def pass_at_k(prompts: np.ndarray, rewards: np.ndarray) -> dict[str, float]:
    """Unbiased pass@k; `prompts` holds one number a sample, `rewards` its reward."""
    n = np.bincount(prompts)
    c = np.bincount(prompts, weights=rewards >= SUCCESS)
    n, c = n[n > 0], c[n > 0]
    found, k = {}, 1
    while k <= n.max():
        sizes, solved = n[n >= k], c[n >= k]
        missed = np.ones(len(sizes))  # C(n-c, k) / C(n, k), factor by factor
        for i in range(k):
            missed *= np.maximum(sizes - solved - i, 0) / (sizes - i)
        found[str(k)] = float(1 - missed.mean())
        k *= 2
    return found


def _keep_figures(steps: Sequence[StepRecord]) -> Row:
    if not steps:
        return dict.fromkeys(("kept", "dropped", "accept_rate", "coverage"))
    table = _table(steps, ["prompt_id", "kept", "reason"])
    kept = table.column("kept").to_numpy().astype(bool)
    covered = np.bincount(codes(table.column("prompt_id")), weights=kept) > 0
    return {
        "kept": int(kept.sum()),
        "dropped": counts(table.filter(pa.array(~kept)).column("reason")),
        "accept_rate": float(kept.mean()) if len(kept) else None,
        "coverage": float(covered.mean()) if len(kept) else None,
    }


def _heldout_figures(steps: Sequence[StepRecord]) -> Row:
    if not steps:
        return dict.fromkeys(("heldout_reward", "heldout_scored", "heldout_stderr"))
    rewards = _floats(_table(steps, ["reward"]).column("reward"))
    rewards = rewards[~np.isnan(rewards)]
    n = len(rewards)
    return {
        "heldout_reward": float(rewards.mean()) if n else None,
        "heldout_scored": n,
        "heldout_stderr": float(rewards.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
    }


# -- the rest -------------------------------------------------------------------------------------


_MADE = ("policy", "kl_base", "kl_previous")
"""What is said of the policy that a training made."""


def _train_figures(steps: Sequence[StepRecord]) -> Row | None:
    """The trainings of a round, several where it was cut by weight syncs, as one."""
    if not steps:
        return None
    parts = [_training(step) for step in steps]
    losses = [part for part in parts if part["loss_first"] is not None]
    flags = {k: v for k, v in parts[0].items() if v is True and all(p.get(k) for p in parts)}
    return {
        "steps": sum(part["steps"] or 0 for part in parts),
        "examples": sum(part["examples"] or 0 for part in parts),
        "loss_first": losses[0]["loss_first"] if losses else None,
        "loss_last": losses[-1]["loss_last"] if losses else None,
        "start": parts[0]["start"],
        "diverged": next((part["diverged"] for part in parts if part["diverged"]), None),
        **{name: parts[-1][name] for name in _MADE},
    } | flags


def _training(step: StepRecord) -> Row:
    names = ("steps", "examples", "loss_first", "loss_last", "start", "diverged", *_MADE)
    if step.finished:
        flags = {k: v for k, v in step.summary.items() if v is True}
        return {name: step.summary.get(name) for name in names} | flags
    log = read_lines(step.path / "log.jsonl")
    losses = [line["loss"] for line in log if line.get("loss") is not None]
    return {
        "steps": log[-1]["step"] if log else 0,
        "examples": step.table(["id"]).num_rows,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "start": step.args().get("start_name"),
        **dict.fromkeys(("diverged", *_MADE)),
    }


def _pair_figures(steps: Sequence[StepRecord]) -> Row | None:
    names = ("pairs", "prompts", "margin_mean", "chosen_length", "rejected_length")
    finished = [s.summary for s in steps if s.finished]
    return {name: finished[-1].get(name) for name in names} if finished else None


def _extra_figures(steps: Sequence[StepRecord]) -> dict[str, Row]:
    found = {}
    for label in dict.fromkeys(s.label for s in of_verb(steps, "generate")):
        own = [s for s in steps if s.label == label]
        rewards = _reward_figures(of_verb(own, "judge"))
        found[label] = {
            "samples": _sample_figures(of_verb(own, "generate"))["samples"],
            "scored": rewards["scored"],
            "kept": _keep_figures(of_verb(own, "keep"))["kept"],
            "reward_mean": rewards["reward_mean"],
        }
    return found
