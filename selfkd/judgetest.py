"""Runs one judge on the samples of a file, as a run would: `selfkd judge test`."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import yaml

from selfkd.assembly import engine_kind, gpu_share
from selfkd.cluster import Cluster
from selfkd.errors import DataError, UsageError
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec, resolve_judge
from selfkd.records import Finish, Prompt, Sample, Verdict
from selfkd.samplers import calls_of_model

BATCH = 256


def spec_of(judge: str, options: Sequence[str] = ()) -> JudgeSpec:
    """The judge that a command line names, with its options as `name=value`, checked."""
    values: dict[str, Any] = {"use": judge}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{text!r} is no option", remedy="write name=value: tolerance=0.01")
        try:
            values[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            values[name] = value  # a string that happens to look like broken YAML
    spec = resolve_judge(values, Path.cwd())
    spec.validate()
    return spec


def run_judge_test(
    spec: JudgeSpec,
    samples_file: Path,
    *,
    timeout: float = 60.0,
    model: str | None = None,
    cluster: Cluster | None = None,
) -> list[Verdict]:
    """A verdict for each sample of a file, in order; on a cluster of its own unless given one.

    `model` answers a judge that asks the run's sampler.
    """
    samples = read_samples_file(samples_file, needs_answer=spec.needs_answer)
    batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
    place = contextlib.nullcontext(cluster) if cluster else Cluster("local", timeout=60)
    with place as running:
        pool = JudgePool(spec, running, workers=1, timeout=timeout, check=lambda: None)
        answering = contextlib.nullcontext()
        if model and spec.engine:
            kind, _ = engine_kind("auto")
            answering = calls_of_model(model, running, kind, gpus=gpu_share(None))
        try:
            with answering as calls:
                return [v for vs in pool.judge_batches(iter(batches), calls) for v in vs]
        finally:
            pool.close()


def read_samples_file(path: Path, *, needs_answer: bool = False) -> list[Sample]:
    """Samples of a JSONL file: `prompt` (text or messages), `completion`, and maybe `answer`,
    `finish` (stop or length) and other columns. DataError names `file:line`."""
    samples = [_sample(row, where, needs_answer) for row, where in _rows(path)]
    if not samples:
        raise DataError("there is no sample in the file", where=str(path))
    return samples


def render_verdicts(verdicts: Sequence[Verdict], as_json: bool) -> str:
    """Verdicts as JSON, or one line each and a summary."""
    if as_json:
        return json.dumps([asdict(v) for v in verdicts])
    rewards = [v.reward for v in verdicts if v.reward is not None]
    counts = Counter(v.status for v in verdicts if v.reward is None)
    parts = [f"{len(verdicts)} samples", f"{len(rewards)} scored"]
    parts += [f"mean reward {sum(rewards) / len(rewards):.3f}"] if rewards else []
    parts += [f"{count} {status}" for status, count in sorted(counts.items())]
    return "\n".join([*map(_line, verdicts), ", ".join(parts)])


def _line(verdict: Verdict) -> str:
    said = verdict.status if verdict.reward is None else f"{verdict.reward:g}"
    read = f"read {verdict.answer!r}" if verdict.answer is not None else ""
    return "  ".join(p for p in (verdict.sample_id, said, read, verdict.rationale) if p)


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
    name = f"line-{where.rpartition(':')[2]}"
    return Sample(name, Prompt.of(prompt, answer, **row), 0, completion, finish=finish)


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
