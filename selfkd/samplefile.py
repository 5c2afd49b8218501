"""Samples of a file, for trying a judge on: one JSON object a line."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from selfkd.errors import DataError
from selfkd.records import Finish, Prompt, Sample


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
