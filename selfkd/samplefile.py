"""Samples to try a judge on: of a file, one JSON object a line, or of a run."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from selfkd.batches import Batch
from selfkd.config import resolve
from selfkd.errors import DataError
from selfkd.launch import read_run
from selfkd.metrics import SUCCESS
from selfkd.records import (
    SAMPLES,
    VERDICTS,
    Finish,
    Prompt,
    Sample,
    read_prompts,
)
from selfkd.rundir import AUDIT, StepRecord, of_verb, round_numbers, round_steps


@dataclass(frozen=True, slots=True)
class Labelled:
    """Samples, and the gold labels of some of them by sample id; no judge sees the labels."""

    samples: list[Sample]
    gold: dict[str, float]


def read_samples_file(path: Path, *, needs_answer: bool = False) -> Labelled:
    """Samples of a JSONL file. DataError names `file:line`.

    Each has `prompt` (text or messages) and `completion`, and maybe `answer`, `finish` (stop or
    length), `policy` (who wrote it), `gold` (a label: a number, true or false), and other columns.
    """
    samples, gold = [], {}
    for row, where in _rows(path):
        label = _label(row.pop("gold", None), where)
        samples.append(_sample(row, where, needs_answer))
        if label is not None:
            gold[samples[-1].id] = label
    if not samples:
        raise DataError("there is no sample in the file", where=str(path))
    return Labelled(samples, gold)


def read_samples(path: Path, *, limit: int, needs_answer: bool = False) -> Labelled:
    """Samples of a file, or of a run's directory: `limit` at most, whole prompts, and of a run as
    many of each round. DataError where there is none."""
    whole = (path / "run.yaml").exists()
    found = _recorded(path) if whole else read_samples_file(path, needs_answer=needs_answer)
    rounds: dict[int, list[Sample]] = {}
    for sample in found.samples:
        rounds.setdefault(sample.round, []).append(sample)
    share = -(-limit // max(1, len(rounds)))
    chosen = [s for samples in rounds.values() for s in _first(samples, share)]
    if not chosen:
        raise DataError("the run has no samples of its own yet", where=str(path))
    return Labelled(chosen, {s.id: found.gold[s.id] for s in chosen if s.id in found.gold})


def _first(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The first samples, those of a prompt together, until there are `count`."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt.id, []).append(sample)
    found: list[Sample] = []
    for group in groups.values():
        if len(found) < count:
            found += group
    return found


def _recorded(run_dir: Path) -> Labelled:
    """A run's own samples, all rounds; labels are what gold said of them: right or wrong."""
    samples: list[Sample] = []
    gold: dict[str, float] = {}
    label = "" if is_gold(run_dir) else AUDIT
    for number in round_numbers(run_dir):
        steps = round_steps(run_dir, number)
        main = [s for s in steps if not s.label]
        prompts = {p.id: p for t in _tables(main, "prompts", PROMPT) for p in read_prompts(t)}
        samples += [
            s
            for t in _tables(main, "generate", SAMPLES.names)
            for s in Batch.read(t, prompts).samples
        ]
        for table in _tables([s for s in steps if s.label == label], "judge", VERDICTS.names):
            for row in table.to_pylist():
                if row["reward"] is not None:
                    gold[row["sample_id"]] = float(row["reward"] >= SUCCESS)
    return Labelled(samples, gold)


PROMPT = ("id", "messages", "answer", "columns")
"""What a judge sees of a prompt; older runs have no more of it."""


def _tables(steps: Sequence[StepRecord], verb: str, names: Sequence[str]) -> Iterator[pa.Table]:
    return (table for step in of_verb(steps, verb) for table in step.tables(names))


def is_gold(run_dir: Path) -> bool:
    """Whether a run's judge compares with reference answers."""
    raw, _ = read_run(run_dir)
    return resolve(raw, file=str(run_dir / "run.yaml")).judge.gold


def _label(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"gold is {value!r}, not a finite number",
            where=where,
            remedy="write 1 or true for right, 0 or false for wrong, or a grade",
        )
    return float(value)


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read the samples: {reason}", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"not JSON: {error.msg} at column {error.colno}"
            raise DataError(reason, where=where) from error
        if not isinstance(row, dict):
            raise DataError(f"a sample is an object, not {line[:40]}", where=where)
        yield row, where


def _sample(row: dict[str, Any], where: str, needs_answer: bool) -> Sample:
    row = dict(row)
    prompt, completion = row.pop("prompt", None), row.pop("completion", None)
    answer, finish = row.pop("answer", None), row.pop("finish", "stop")
    policy = row.pop("policy", "base")
    if not _is_prompt(prompt):
        raise DataError(
            "prompt is neither text nor a list of messages",
            where=where,
            remedy='write "prompt": "..." or "prompt": [{"role": "user", "content": "..."}]',
        )
    if not isinstance(completion, str):
        raise DataError(f"completion is {completion!r}, not text", where=where)
    if finish not in get_args(Finish):
        raise DataError(f"finish is {finish!r}, not one of {get_args(Finish)}", where=where)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str | None):
        raise DataError(f"answer is {answer!r}, not text", where=where)
    if needs_answer and answer is None:
        raise DataError("the judge needs an answer and there is none", where=where)
    if not isinstance(policy, str) or not policy:
        raise DataError(f"policy is {policy!r}, not a name", where=where)
    name = f"line-{where.rpartition(':')[2]}"
    return Sample(
        name, Prompt.of(prompt, answer, **row), 0, completion, finish=finish, policy=policy
    )


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))
            for m in value
        )
    )
