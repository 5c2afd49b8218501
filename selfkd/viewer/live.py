"""What a run does just now, and whether anything of it changed, without reading its data."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from selfkd.rundir import read_json, read_lines, round_numbers, round_steps, run_state


def stamp(run_dir: Path) -> str:
    """A short text that changes whenever the records of a run do; "" where there is no run."""
    if not (run_dir / "run.yaml").is_file():
        return ""
    state = run_state(run_dir, read_lines(run_dir / "events.jsonl"))
    return hashlib.sha256("\n".join([state, *_marks(run_dir)]).encode()).hexdigest()[:24]


def folder_stamp(folder: Path) -> str:
    """The same for all runs of a folder."""
    marks = [
        f"{path.parent.name} {stamp_of_list(path.parent)}"
        for path in sorted(folder.glob("*/run.yaml"))
    ]
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:24]


def stamp_of_list(run_dir: Path) -> str:
    """What the list of runs shows of one: its state, events and figures."""
    files = [run_dir / name for name in ("run.yaml", "events.jsonl", "metrics.jsonl", "lock")]
    return " ".join(_mark(f) for f in files)


def _marks(run_dir: Path) -> Iterator[str]:
    yield stamp_of_list(run_dir)
    rounds = run_dir / "rounds"
    for number in round_numbers(run_dir):
        with os.scandir(rounds / f"{number:03d}") as steps:
            for step in sorted(steps, key=lambda entry: entry.name):
                yield f"{number} {step.name} {step.stat().st_mtime_ns}"
                if "-train" in step.name:
                    yield _mark(Path(step.path) / "log.jsonl")


def _mark(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "-"
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def current_step(run_dir: Path) -> dict[str, Any] | None:
    """The step in progress: round, verb, label, done and total (samples, or optimiser steps).

    None where every recorded step is finished.
    """
    numbers = round_numbers(run_dir)
    open_steps = [s for s in round_steps(run_dir, numbers[-1]) if not s.finished] if numbers else []
    if not open_steps:
        return None
    step = open_steps[0]
    done, total = sum(pq.read_metadata(p).num_rows for p in step.shards()), None
    if step.verb == "train":
        log = read_lines(step.path / "log.jsonl")
        done = int(log[-1].get("step", 0)) if log else 0
        total = log[-1].get("total_steps") if log else None
    else:
        total = _total(run_dir, step.path)
    return {"round": step.round, "verb": step.verb, "label": step.label} | {
        "done": done,
        "total": total or None,
        "since": read_json(step.path / "step.json").get("started"),
    }


def _total(run_dir: Path, step: Path) -> int | None:
    where = (int(step.parent.name), step.name)
    events = read_lines(run_dir / "events.jsonl")
    started = (e for e in reversed(events) if e.get("event") == "step_started")
    return next((e.get("total") for e in started if (e.get("round"), e.get("step")) == where), None)
