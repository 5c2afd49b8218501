"""Checks a checkpoint before an engine touches its own weights: a half-loaded engine is lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from selfkd.errors import DataError


class Stored(NamedTuple):
    """What the header of a file says of one tensor."""

    shape: tuple[int, ...]
    kind: str
    """`float` for what an engine casts to its own; else the dtype, as safetensors names it."""


FLOATS = ("F64", "F32", "F16", "BF16")


def stored_tensors(path: str | Path) -> dict[str, Stored]:
    """Every tensor in a model directory, by name; reads the headers only.

    Left out is what a checkpoint may hold or not: a tied output head, and rotary frequencies.
    Raises DataError for a file that is truncated or is not safetensors.
    """
    tensors: dict[str, Stored] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                names = stored.keys()
                tensors |= {name: _told(stored.get_slice(name)) for name in names}
        except (SafetensorError, OSError) as error:
            raise _damaged(file, str(error)) from error
    tied = json.loads((Path(path) / "config.json").read_text()).get("tie_word_embeddings")
    optional = ("rotary_emb.inv_freq", *(["lm_head.weight"] if tied else []))
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(optional)}


def _told(tensor: Any) -> Stored:
    dtype = tensor.get_dtype()
    return Stored(tuple(tensor.get_shape()), "float" if dtype in FLOATS else dtype)


def same_architecture(one: str | Path, other: str | Path) -> bool:
    """Whether one model's weights can take the place of another's: all but dtype is alike."""

    def config(path: str | Path) -> dict[str, object]:
        read = json.loads((Path(path) / "config.json").read_text())
        return {k: v for k, v in read.items() if k not in _INCIDENTAL}

    return config(one) == config(other)


_INCIDENTAL = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")


def check_weights(path: str | Path, held: Mapping[str, Stored]) -> None:
    """Raise DataError unless the model directory `path` holds the tensors of `held`, no others.

    `held` are those of the checkpoint that the engine was started with.
    """
    new = stored_tensors(path)
    for name, (shape, kind) in held.items():
        if name not in new:
            raise _damaged(path, f"{name} is missing")
        if new[name].shape != shape:
            raise _damaged(path, f"{name} has shape {new[name].shape} instead of {shape}")
        if new[name].kind != kind:
            raise _damaged(path, f"{name} has dtype {new[name].kind} instead of {kind}")
    if extra := sorted(new.keys() - held.keys()):
        raise _damaged(path, f"{extra[0]} is not part of the model")


def _damaged(path: str | Path, reason: str) -> DataError:
    return DataError(
        f"the weights cannot be used: {reason}",
        where=str(path),
        remedy="the checkpoint is damaged: delete it and its train step, then resume",
    )
