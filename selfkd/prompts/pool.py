"""The distinct prompts of one file or data set, and the count of what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.errors import DataError
from selfkd.prompts.files import Row, read_rows
from selfkd.prompts.options import PromptOptions
from selfkd.prompts.shape import Shape
from selfkd.records import Prompt


@dataclass(frozen=True, slots=True)
class Pool:
    """Prompts that were read from one place; no two of them have the same id."""

    source: str
    prompts: list[Prompt]
    duplicates: int
    bad_rows: int


def read_pool(
    source: str,
    base: Path,
    options: PromptOptions,
    *,
    dataset: Mapping[str, Any],
    limit: int | None,
) -> Pool:
    """Read at most `limit` rows of `source` as prompts.

    `dataset` holds what chooses a part of a data set. Raises DataError with `file:line` for a row
    that cannot be used, unless `options.skip_bad`; and where no prompt is left.
    """
    rows, unread = _rows(source, base, dataset, limit, options.skip_bad)
    prompts, unfit = _prompts(source, rows, options)
    bad = unread + unfit
    distinct: dict[str, Prompt] = {}
    for prompt in prompts:
        distinct.setdefault(prompt.id, prompt)
    if not distinct:
        raise DataError(
            "0 prompts" + (f", {bad} bad rows" if bad else ""),
            where=source,
            remedy="name a file or data set with one prompt a row",
        )
    return Pool(source, list(distinct.values()), len(prompts) - len(distinct), bad)


def _rows(
    source: str, base: Path, dataset: Mapping[str, Any], limit: int | None, skip_bad: bool
) -> tuple[list[Row], int]:
    """Readable rows, and how many were not."""
    rows: list[Row] = []
    bad = 0
    for item in read_rows(source, base, dataset):
        if isinstance(item, Row):
            rows.append(item)
        elif skip_bad:
            bad += 1
        else:
            raise item
        if len(rows) == limit:
            break
    return rows, bad


def _prompts(source: str, rows: list[Row], options: PromptOptions) -> tuple[list[Prompt], int]:
    """Prompts of the rows that hold one, and how many do not."""
    if not rows:
        return [], 0
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    shape = Shape.of(options, columns, source)
    prompts = []
    for row in rows:
        try:
            prompts.append(shape.prompt(row))
        except DataError:
            if not options.skip_bad:
                raise
    return prompts, len(rows) - len(prompts)
