"""Reads rows from JSONL, CSV and Parquet files and from Hugging Face data sets.

A row that cannot be read comes as the DataError that says where and why: whoever reads decides
whether it ends the run or is skipped.
"""

import codecs
import csv
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.errors import DataError, InfrastructureError, UsageError

DATASET_OPTIONS = ("name", "split", "heldout_split", "revision")

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One record: column name -> value, and the `file:line` (or `data set:row`) it stands at."""

    values: Mapping[str, Any]
    where: str


Item = Row | DataError


def read_rows(source: str, base: Path, options: Mapping[str, Any]) -> Iterator[Item]:
    """Rows of `source`: a file, a data set directory (relative to `base`), a hub id `org/name`, or
    `verifiers:TASKSET`.

    Raises UsageError where there is no such source or `options` do not fit it.
    """
    if source.startswith("verifiers:"):
        from selfkd.prompts.tasksets import Taskset

        return Taskset.of(source.partition(":")[2], options).rows()
    path = base / Path(source).expanduser()
    read = READERS.get(path.suffix.lower())
    if path.is_dir() or (not path.exists() and not read and _HUB_ID.fullmatch(source)):
        return _dataset_rows(source, path, options)
    if options:
        raise UsageError(
            f"a file takes no options, but there are: {', '.join(options)}",
            where="prompts.options",
            remedy="remove them",
        )
    if not path.exists():
        raise UsageError("no such file or directory", where=str(path), remedy=_nearby(path))
    if read is None:
        raise UsageError(
            f"prompts cannot be read from a {path.suffix or 'nameless kind of'} file",
            where=str(path),
            remedy="give one of these: " + ", ".join(READERS),
        )
    return read(path)


def _jsonl(path: Path) -> Iterator[Item]:
    # Split at line feeds only: JSON strings may hold other characters that count as line ends.
    data = _read(path).removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield _json_row(line, f"{path}:{number}")


def _json_row(line: bytes, where: str) -> Item:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(f"byte {error.start + 1} of the line", where)
    except (ValueError, RecursionError) as error:
        return _bad(f"not JSON: {error}", where)
    if not isinstance(value, dict):
        return _bad(f"a {type(value).__name__}, not a JSON object", where)
    return Row(value, where)


def _csv(path: Path) -> Iterator[Item]:
    text = _read(path).decode("utf-8-sig", "surrogateescape")
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long prompts
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            yield _csv_row(values, f"{path}:{reader.line_num}")
    except csv.Error as error:  # where the next row would begin is unknown: nothing to skip to
        where = f"{path}:{reader.reader.line_num}"
        raise DataError(f"not CSV: {error}", where=where, remedy="correct it") from error


def _csv_row(values: Mapping[Any, Any], where: str) -> Item:
    if None in values or None in values.values():
        return _bad("not as many fields as the header", where)
    if any(_UNDECODED.search(text) for pair in values.items() for text in pair):
        return _not_utf8("some bytes of the row", where)
    return Row({k: v or None for k, v in values.items()}, where)  # CSV has no other null


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not a Parquet file: {error}", where=str(path)) from error
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(values, f"{path}:{number}")


READERS: dict[str, Callable[[Path], Iterator[Item]]] = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _dataset_rows(source: str, path: Path, options: Mapping[str, Any]) -> Iterator[Item]:
    for name in options:
        if name not in DATASET_OPTIONS:
            raise UsageError(
                f"a data set has no option {name!r}",
                where=f"prompts.options.{name}",
                remedy="known options: " + ", ".join(DATASET_OPTIONS),
            )
    dataset = _load_dataset(source, path, options)
    for number, values in enumerate(dataset.with_format(None), 1):
        yield Row(values, f"{source}:{number}")


def _load_dataset(source: str, path: Path, options: Mapping[str, Any]) -> Any:
    """The asked split of a data set that was saved to disk, is a folder of files, or on the hub."""
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx

    split = options.get("split")
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            place = str(path) if path.is_dir() else source
            name, revision = options.get("name"), options.get("revision")
            loaded = datasets.load_dataset(place, name, split=split, revision=revision)
    except (ConnectionError, httpx.HTTPError) as error:
        raise InfrastructureError(
            f"cannot reach the data set: {error}",
            where=source,
            remedy="check the name and the network, or give a local file or directory",
        ) from error
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error), where=source, remedy="check prompts.options") from error
    except DatasetsError as error:
        raise DataError(f"the data set cannot be read: {error}", where=source) from error
    return _pick_split(loaded, split, source) if isinstance(loaded, dict) else loaded


def _pick_split(splits: Mapping[Any, Any], wanted: str | None, source: str) -> Any:
    if wanted is None:
        wanted = next(iter(splits)) if len(splits) == 1 else "train"
    if wanted not in splits:
        raise UsageError(
            f"no split {wanted!r}",
            where=source,
            remedy=f"set prompts.options.split to one of {', '.join(splits)}",
        )
    return splits[wanted]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the prompts: {error.strerror}", where=str(path), remedy="check the path"
        ) from error


def _bad(message: str, where: str) -> DataError:
    return DataError(message, where=where, remedy="correct it, or pass --skip-bad")


def _not_utf8(what: str, where: str) -> DataError:
    remedy = "convert the file to UTF-8, or pass --skip-bad"
    return DataError(f"not UTF-8 text ({what})", where=where, remedy=remedy)


def _nearby(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1)
    return f"did you mean {close[0]!r}?" if close else "a data set on the hub is written org/name"
