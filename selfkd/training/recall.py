"""What a teacher that stays the same has answered before, on disk: `GKD(..., keep_states=True)`.

A training leaves a file with what it had to ask for, in the folder of its step; trainings after it
read it. H: hidden size.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from selfkd.files import whole_file
from selfkd.ledger import broken
from selfkd.records import TEACHER_STATES, content_hash
from selfkd.rundir import unreadable

Row = dict[str, Any]

GROUP = 2**25
"""Bytes of states that are written, and read, at a time."""


def length(row: Row) -> int:
    """Tokens of a row's completion."""
    return len(row["input_ids"]) - row["prompt_length"]


def seen_by_teacher(row: Row) -> Row:
    """The row with the teacher's prompt, where it has another one."""
    prompt = row["teacher_prompt"] or row["input_ids"][: row["prompt_length"]]
    ids = [*prompt, *row["input_ids"][row["prompt_length"] :]]
    return row | {"input_ids": ids, "prompt_length": len(prompt)}


def key(row: Row) -> str:
    """What a teacher is asked about: its prompt, and the completion that follows it."""
    seen = seen_by_teacher(row)
    return content_hash([seen["prompt_length"], seen["input_ids"]])


def recall(
    path: Path, wanted: Collection[str], dtype: torch.dtype, width: int
) -> Iterator[tuple[str, Tensor]]:
    """Those of the wanted keys that a file has, with their states [tokens, H].

    None where they were computed in another dtype. Raises DataError where the file is damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if file.schema_arrow.metadata != _metadata(dtype, width):
                return
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, ["key"])["key"].to_pylist()
                if not any(k in wanted for k in keys):
                    continue
                states = file.read_row_group(group, ["states"])["states"]
                for name, value in zip(keys, states, strict=True):
                    if name in wanted:
                        raw = bytearray(value.as_buffer())
                        yield name, torch.frombuffer(raw, dtype=dtype).view(-1, width)
    except (OSError, pa.ArrowException) as error:
        raise broken(path, unreadable(error)) from error


def leave(path: Path, found: Mapping[str, Tensor], dtype: torch.dtype, width: int) -> None:
    """Write states [tokens, H] by key, whole or not at all."""
    schema = TEACHER_STATES.with_metadata(_metadata(dtype, width))
    per_group = max(1, GROUP // max(states.nbytes for states in found.values()))
    items = list(found.items())
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with whole_file(path) as sink, pq.ParquetWriter(sink, schema, **options) as writer:
        for at in range(0, len(items), per_group):
            keys, states = zip(*items[at : at + per_group], strict=True)
            raw = [s.contiguous().view(torch.uint8).numpy().tobytes() for s in states]
            columns = [pa.array(keys), pa.array(raw, pa.large_binary())]
            writer.write_table(pa.table(columns, schema=schema))


def _metadata(dtype: torch.dtype, width: int) -> dict[bytes, bytes]:
    return {b"dtype": str(dtype).encode(), b"hidden_size": str(width).encode()}
