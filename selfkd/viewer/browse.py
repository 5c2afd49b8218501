"""The samples of a run by filter, a page at a time, without reading what is not shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfkd.errors import UsageError
from selfkd.records import content_hash
from selfkd.rundir import (
    StepRecord,
    counts,
    find_rows,
    of_verb,
    places,
    read_columns,
    round_numbers,
    round_steps,
)
from selfkd.viewer.remembered import Remembered
from selfkd.viewer.show import PROMPT, sample_row, source_steps

Row = dict[str, Any]
Order = Literal["recorded", "reward_high", "reward_low", "longest", "shortest"]

_SAMPLE = (
    "id",
    "prompt_id",
    "index",
    "completion",
    "finish",
    "tokens",
    "policy",
    "view",
    "round",
    "parents",
)
_VERDICT = ("sample_id", "judge", "reward", "status", "answer", "rationale")
_DECISION = ("sample_id", "kept", "reason")

_LISTS: Remembered[pa.Table] = Remembered(3_000_000, len)
"""`sample_list` by what it was read from; a row takes about 100 bytes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which samples; empty text, None and "recorded" ask for nothing in particular."""

    label: str = ""
    """"" for own samples, `heldout`, or the label of further sampling."""
    prompt: str = ""
    policy: str = ""
    kept: bool | None = None
    reason: str = ""
    status: str = ""
    low: float | None = None
    high: float | None = None
    text: str = ""
    """Part of the completion, in any case."""
    order: Order = "recorded"


def sample_rounds(run_dir: Path) -> dict[int, list[str]]:
    """Round -> labels of the samples it holds, or decides about."""
    found = {}
    for number in round_numbers(run_dir):
        steps = round_steps(run_dir, number)
        found[number] = sorted({s.label for s in steps if s.verb in ("generate", "keep")})
    return {n: labels for n, labels in found.items() if labels}


def browse(run_dir: Path, round: int, wanted: Wanted, *, offset: int = 0, limit: int = 50) -> Row:
    """A page of samples: `total`, `offset`, `rows` (see `show_samples`), `reasons`, `statuses`.

    The counts by reason and status are those of all samples of the round and label. Raises
    UsageError for a round that is not there, DataError that names a damaged file.
    """
    files, table = sample_list(run_dir, round, wanted.label)
    chosen = _ordered(_matching(table, wanted, files), wanted.order, files)
    page = chosen.slice(offset, limit)
    return {
        "total": chosen.num_rows,
        "offset": offset,
        "rows": read_rows(run_dir, round, files, page),
        "reasons": counts(table.column("reason").drop_null()),
        "statuses": counts(table.column("status").drop_null()),
    }


def sample_list(run_dir: Path, round: int, label: str) -> tuple[list[Path], pa.Table]:
    """The files that hold the samples of a round, and one row a sample.

    Columns: id, prompt_id, policy, file and row (where it is), reward, status, kept, reason.
    """
    if round not in round_numbers(run_dir):
        raise UsageError(f"there is no round {round}", where=run_dir.name)
    own = _labelled(run_dir, round, label)
    source = source_steps(run_dir, round, lambda number: _labelled(run_dir, number, label))
    files = [p for s in of_verb(source, "generate") for p in s.shards()]
    parts = [files, *(s.shards() for s in (*of_verb(source, "judge"), *of_verb(own, "keep")))]
    key = content_hash([[str(p) for p in part] for part in parts] + [_stamps(parts)], 32)
    judged, decided = of_verb(source, "judge"), of_verb(own, "keep")
    return files, _LISTS.get(key, lambda: _join(files, judged, decided))


def _labelled(run_dir: Path, round: int, label: str) -> list[StepRecord]:
    return [s for s in round_steps(run_dir, round) if s.label == label]


def _stamps(parts: Iterable[Sequence[Path]]) -> list[int]:
    # Shards never change, but a run that was deleted and made again has others of the same name.
    return [part[0].stat().st_mtime_ns for part in parts if part and part[0].exists()]


def _join(
    files: Sequence[Path], judged: Sequence[StepRecord], decided: Sequence[StepRecord]
) -> pa.Table:
    tables = []
    for number, path in enumerate(files):
        table = read_columns(path, ["id", "prompt_id", "policy"])
        place = {
            "file": np.full(table.num_rows, number, np.int32),
            "row": np.arange(table.num_rows, dtype=np.int32),
        }
        for name, values in place.items():
            table = table.append_column(name, pa.array(values))
        tables.append(table)
    empty = pa.table(
        {n: pa.array([], pa.string()) for n in ("id", "prompt_id", "policy")}
        | {n: pa.array([], pa.int32()) for n in ("file", "row")}
    )
    joined = pa.concat_tables([empty, *tables]).combine_chunks()
    for steps, columns in ((judged, ("reward", "status")), (decided, ("kept", "reason"))):
        joined = _add_columns(joined, steps, columns)
    return joined


def _add_columns(table: pa.Table, steps: Sequence[StepRecord], columns: Sequence[str]) -> pa.Table:
    """Columns of other steps beside the samples they are about; null where there is none."""
    types = {"reward": pa.float64(), "status": pa.string(), "kept": pa.bool_()}
    if not steps:
        for name in columns:
            nulls = pa.nulls(table.num_rows, types.get(name, pa.string()))
            table = table.append_column(name, nulls)
        return table
    others = pa.concat_tables([s.table(["sample_id", *columns]) for s in steps])
    place = places(table.column("id"), others.column("sample_id"))
    for name in columns:
        table = table.append_column(name, others.column(name).take(place))
    return table


# -- choosing -------------------------------------------------------------------------------------


def _matching(table: pa.Table, wanted: Wanted, files: Sequence[Path]) -> pa.Table:
    for name in ("prompt_id", "policy", "reason", "status"):
        if value := getattr(wanted, name.removesuffix("_id")):
            table = table.filter(pc.field(name) == value)
    if wanted.kept is not None:
        table = table.filter(pc.field("kept") == wanted.kept)
    if wanted.low is not None:
        table = table.filter(pc.field("reward") >= wanted.low)
    if wanted.high is not None:
        table = table.filter(pc.field("reward") <= wanted.high)
    return _containing(table, wanted.text, files) if wanted.text else table


def _containing(table: pa.Table, text: str, files: Sequence[Path]) -> pa.Table:
    def test(part: pa.Table) -> np.ndarray:
        options = pc.MatchSubstringOptions(text, ignore_case=True)
        found = pc.call_function("match_substring", [part.column("completion")], options)
        return found.to_numpy()

    return table.filter(pa.array(_by_file(table, files, "completion", test, False)))


def _ordered(table: pa.Table, order: Order, files: Sequence[Path]) -> pa.Table:
    if order in ("reward_high", "reward_low"):
        way = "descending" if order == "reward_high" else "ascending"
        keys = [("reward", way), ("file", "ascending"), ("row", "ascending")]
        return table.sort_by(keys)
    if order in ("longest", "shortest"):

        def size(part: pa.Table) -> np.ndarray:
            return part.column("tokens").combine_chunks().value_lengths().to_numpy()

        lengths = _by_file(table, files, "tokens", size, 0)
        place = np.argsort(-lengths if order == "longest" else lengths, kind="stable")
        return table.take(pa.array(place))
    return table


def _by_file(
    table: pa.Table, files: Sequence[Path], column: str, measure: Any, empty: Any
) -> np.ndarray:
    """`measure` of a column of the samples' files, one value a row of `table`."""
    where, row = (table.column(n).to_numpy() for n in ("file", "row"))
    found = np.full(table.num_rows, empty)
    for number in np.unique(where):
        mine = where == number
        found[mine] = measure(read_columns(files[number], [column]))[row[mine]]
    return found


# -- reading --------------------------------------------------------------------------------------


def read_rows(run_dir: Path, round: int, files: Sequence[Path], page: pa.Table) -> list[Row]:
    """The rows of `sample_list` in full: sample, prompt, verdict and decision."""
    samples = _read_samples(files, page)
    label_steps = [s for p in files[:1] for s in _steps_beside(run_dir, p)]
    prompts = find_rows(of_verb(label_steps, "prompts"), PROMPT, {s["prompt_id"] for s in samples})
    ids = {s["id"] for s in samples}
    verdicts = find_rows(of_verb(label_steps, "judge"), _VERDICT, ids)
    rows = []
    for sample, listed in zip(samples, page.to_pylist(), strict=True):
        verdict = verdicts.get(sample["id"], {})
        row = sample_row(sample, prompts.get(sample["prompt_id"], {}), verdict, listed)
        more = {name: sample[name] for name in ("index", "round", "parents")}
        rows.append(row | more | {"judge": verdict.get("judge")})
    return rows


def _steps_beside(run_dir: Path, shard: Path) -> list[StepRecord]:
    """The steps of the round and label that a shard belongs to."""
    steps = round_steps(run_dir, int(shard.parent.parent.name))
    label = next((s.label for s in steps if s.path == shard.parent), "")
    return [s for s in steps if s.label == label]


def _read_samples(files: Sequence[Path], page: pa.Table) -> list[Row]:
    where, row = (page.column(n).to_numpy() for n in ("file", "row"))
    found: list[Row] = [{}] * page.num_rows
    for number in np.unique(where):
        mine = np.flatnonzero(where == number)
        part = read_columns(files[number], _SAMPLE).take(pa.array(row[mine]))
        for place, sample in zip(mine, part.to_pylist(), strict=True):
            found[place] = sample | {"label": _label_of(files[number])}
    return found


def _label_of(shard: Path) -> str:
    return "-".join(shard.parent.name.split("-")[2:])
