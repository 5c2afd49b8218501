"""What a teacher that stays the same has answered before, on disk: `GKD(..., keep_states=True)`.

A training leaves a file with what it had to ask for, in the folder of its step; trainings after it
read it. H: hidden size.
"""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from selfkd.ledger import broken, sync_directory
from selfkd.records import TEACHER_STATES

Row = dict[str, Any]

GROUP = 2**25
"""Bytes of states that are written, and read, at a time."""


def key(row: Row) -> str:
    """What a teacher is asked about: its prompt, and the completion that follows it."""
    prompt = row["teacher_prompt"] or row["input_ids"][: row["prompt_length"]]
    completion = row["input_ids"][row["prompt_length"] :]
    tokens = np.array([len(prompt), *prompt, *completion], dtype=np.int64)
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:32]


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
        raise broken(path, f"not readable ({str(error).partition(chr(10))[0]})") from error


def leave(path: Path, found: Mapping[str, Tensor], dtype: torch.dtype, width: int) -> None:
    """Write states [tokens, H] by key, whole or not at all."""
    schema = TEACHER_STATES.with_metadata(_metadata(dtype, width))
    temporary = path.with_name(f".tmp-{path.name}")
    row = max(states.nbytes for states in found.values())
    per_group = max(1, GROUP // row)
    items = list(found.items())
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with temporary.open("wb") as sink:
        with pq.ParquetWriter(sink, schema, **options) as writer:
            for at in range(0, len(items), per_group):
                keys, states = zip(*items[at : at + per_group], strict=True)
                raw = [s.contiguous().view(torch.uint8).numpy().tobytes() for s in states]
                writer.write_table(
                    pa.table([pa.array(keys), pa.array(raw, pa.large_binary())], schema=schema)
                )
        sink.flush()
        os.fsync(sink.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def _metadata(dtype: torch.dtype, width: int) -> dict[bytes, bytes]:
    return {b"dtype": str(dtype).encode(), b"hidden_size": str(width).encode()}
