"""Reads a run directory as it lies there: live, finished, or copied from elsewhere.

Nothing here writes, locks or starts anything. Columns are read, not rows, and each file on its own,
so that a damaged one is named.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from selfkd.errors import UsageError
from selfkd.ledger import broken
from selfkd.records import DECISIONS, EXAMPLES, PROMPTS, SAMPLES, TEACHINGS, VERDICTS

HELDOUT = "heldout"
"""Label of the steps that measure a policy on held-out prompts."""
ANCHORS = "anchors"
"""Label of the steps that judge samples of the first round again."""
CONTROLS = "controls"
"""Label of the steps that hold completions of known worth, planted for the judge."""
APART = (ANCHORS, HELDOUT, CONTROLS)
"""Labels of what is never learnt from, nor part of what a round made."""
AUDIT = "audit"
"""Label of the steps in which gold judges what another judge has judged, to compare the two."""
STATES = "teacher.parquet"
"""In a training's folder: what a teacher answered (`records.TEACHER_STATES`), if that is kept."""

State = Literal["running", "finished", "stopped", "failed"]

_SCHEMAS = {
    "prompts": PROMPTS,
    "generate": SAMPLES,
    "judge": VERDICTS,
    "keep": DECISIONS,
    "teach": TEACHINGS,
    "train": EXAMPLES,
}
_ENDINGS: dict[str, State] = {
    "run_finished": "finished",
    "stopped": "stopped",
    "run_failed": "failed",
}


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step has recorded so far; without a manifest it is not finished."""

    path: Path
    round: int
    verb: str
    label: str
    manifest: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the manifest is there."""
        return self.manifest is not None

    @property
    def summary(self) -> dict[str, Any]:
        """The summary in the manifest; empty before."""
        return self.manifest["summary"] if self.manifest else {}

    def shards(self) -> list[Path]:
        """Recorded Parquet files, in order."""
        if self.manifest:
            names = [str(shard["file"]) for shard in self.manifest["shards"]]
            if outside := next((n for n in names if "/" in n or n.startswith(".")), None):
                raise broken(self.path / "manifest.json", f"it names {outside!r} as a shard")
            return [self.path / name for name in names]
        return sorted(self.path.glob("[0-9]*.parquet"))

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of each shard. Raises DataError that names a damaged file."""
        return (read_columns(shard, columns) for shard in self.shards())

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all shards together."""
        empty = pa.schema([_SCHEMAS[self.verb].field(c) for c in columns]).empty_table()
        return pa.concat_tables([empty, *self.tables(columns)])

    def args(self) -> dict[str, Any]:
        """What the step was asked to do."""
        return read_json(self.path / "step.json")["args"]


def unreadable(error: Exception) -> str:
    """What is wrong with a file that Arrow could not read, in a line."""
    return f"not readable ({str(error).partition(chr(10))[0]})"


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of one Parquet file. Raises DataError that names the file if it is damaged."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=list(columns))
    except FileNotFoundError as error:
        raise broken(path, "recorded in the manifest but missing") from error
    except (OSError, pa.ArrowException) as error:
        raise broken(path, unreadable(error)) from error
    if missing := set(columns) - set(table.column_names):
        raise broken(path, f"it has no column {', '.join(sorted(missing))}")
    return table.select(list(columns))


def of_verb(steps: Iterable[StepRecord], verb: str) -> list[StepRecord]:
    """Those of the steps that are one verb's."""
    return [s for s in steps if s.verb == verb]


def find_rows(
    steps: Iterable[StepRecord], columns: Sequence[str], values: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Rows by their first column, those of `values` only; stops reading when all are found."""
    missing, found = set(values), dict[str, dict[str, Any]]()
    for path in (p for s in steps for p in s.shards()):
        if not missing:
            break
        table = read_columns(path, columns).filter(pc.field(columns[0]).isin(sorted(missing)))
        for row in table.to_pylist():
            found.setdefault(row[columns[0]], row)
        missing -= found.keys()
    return found


def codes(column: pa.ChunkedArray) -> np.ndarray:
    """Strings as numbers from 0, equal where the strings are."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False)


def token_counts(samples: pa.Table) -> np.ndarray:
    """Tokens of each completion, int64."""
    lengths = samples.column("tokens").combine_chunks().value_lengths()
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def places(wanted: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where each of `wanted` first is in `among`; null where it is not."""
    options = pc.SetLookupOptions(value_set=among)
    return pc.call_function("index_in", [wanted], options)


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, the commonest first."""
    pairs = [(c["values"], c["counts"]) for c in column.value_counts().to_pylist()]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError that names the file."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise broken(path, f"not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise broken(path, "not a JSON object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line still being written is left out."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise broken(path, f"a line is not JSON ({error})") from error


def round_numbers(run_dir: Path) -> list[int]:
    """Rounds that have a directory, in order."""
    return sorted(int(p.name) for p in run_dir.glob("rounds/*") if p.name.isdigit() and p.is_dir())


def round_steps(run_dir: Path, round: int) -> list[StepRecord]:
    """The steps of one round, in the order they were asked for."""
    found = []
    for path in (run_dir / "rounds" / f"{round:03d}").glob("*-*"):
        match = re.fullmatch(r"(\d+)-([a-z]+)(?:-(.+))?", path.name)
        if match and path.is_dir():
            manifest = path / "manifest.json"
            recorded = read_json(manifest) if manifest.exists() else None
            step = StepRecord(path, round, match[2], match[3] or "", recorded)
            found.append((int(match[1]), step))
    return [step for _, step in sorted(found, key=lambda pair: pair[0])]


def read_config(run_dir: Path) -> dict[str, Any]:
    """What `run.yaml` says: the config, and under `run` versions and machine.

    Raises UsageError where there is no run, DataError where the file is damaged.
    """
    file = run_dir / "run.yaml"
    if not file.is_file():
        raise UsageError(
            "not a run directory: it has no run.yaml", where=str(run_dir), remedy="see `selfkd ls`"
        )
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise broken(file, "it cannot be read as YAML") from error
    if not isinstance(config, dict):
        raise broken(file, "it is not a mapping")
    return config


def run_facts(run_dir: Path) -> dict[str, Any]:
    """`run` (its name), `path`, `loop`, `model`, `judge`, `planned_rounds`, `created` and `state`.

    Raises UsageError where there is no run, DataError where its files are damaged.
    """
    config = read_config(run_dir)
    events = read_lines(run_dir / "events.jsonl")
    started = next((e for e in reversed(events) if e.get("event") == "run_started"), {})
    head = config.get("run")
    return {
        "run": run_dir.resolve().name,
        "path": str(run_dir),
        "loop": started.get("loop") or _short(config.get("loop")),
        "model": started.get("model") or _short(config.get("model")),
        "judge": started.get("judge") or _short(config.get("judge")),
        "planned_rounds": config.get("rounds"),
        "created": str(head["created"]) if isinstance(head, dict) and "created" in head else None,
        "state": run_state(run_dir, events),
    }


def run_state(run_dir: Path, events: Sequence[dict[str, Any]]) -> State:
    """Running while a process of this machine holds the lock, else how the last start ended.

    A run that was killed wrote no end: it counts as stopped, because it can be resumed.
    """
    if _lock_is_held(run_dir / "lock"):
        return "running"
    last = next(
        (e["event"] for e in reversed(events) if e.get("event") in {*_ENDINGS, "run_started"}), ""
    )
    return _ENDINGS.get(last, "stopped")


def _lock_is_held(path: Path) -> bool:
    # A shared lock is tried for an instant, and only where a live holder is on record, so that
    # looking at a run never makes its start or its resume fail.
    try:
        with path.open("rb") as file:
            holder = json.loads(file.read() or b"{}")
            if holder.get("host") != socket.gethostname() or not _is_alive(holder["pid"]):
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _short(value: Any) -> str:
    """A plug-in or model as a person calls it: the name in `/path/file.py:name`."""
    spec = str(value.get("use", "") if isinstance(value, dict) else value or "")
    return spec.rpartition(":")[2] if ".py:" in spec else spec.rstrip("/").rpartition("/")[2]
