"""Reads the files of a model directory without loading the model; names the one that is damaged.

What reads them otherwise, such as transformers, ends with an error that names no file.
"""

import json
from pathlib import Path
from typing import Any

from selfkd.errors import DataError

TOKENIZER_OBJECTS = (
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Files that transformers may read for a tokenizer, each of them a JSON object."""

GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""What tokenizer_config.json names where all of a tokenizer is in tokenizer.json."""

GENERIC_MODELS = ("granite", "llama", "olmo2", "smollm3")
"""Model types for which AutoTokenizer does what that file says. For some others it knows better."""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; DataError where there is none."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise _damaged(file, f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(file, f"it holds a {type(value).__name__}, not a JSON object")
    return value


def tensor_shapes(file: Path) -> list[list[int]]:
    """The shape of each tensor in a safetensors file; DataError where its header, or the length of
    the file, is not right."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, f"its weights cannot be read: {error}") from error


def names_generic_tokenizer(model_path: Path) -> bool:
    """Whether the files alone tell that AutoTokenizer would load a `PreTrainedTokenizerFast`.

    Raises DataError where one of them is damaged.
    """
    model, config = model_path / "config.json", model_path / "tokenizer_config.json"
    if not all(file.exists() for file in (model, config, model_path / "tokenizer.json")):
        return False
    named = read_object(config)
    return (
        named.get("tokenizer_class") in GENERIC_CLASSES
        and "auto_map" not in named
        and read_object(model).get("model_type") in GENERIC_MODELS
    )


def check_tokenizer_files(model_path: Path) -> None:
    """Raise DataError where a file that a tokenizer is made from is damaged."""
    from tokenizers import Tokenizer

    for name in TOKENIZER_OBJECTS:
        if (model_path / name).exists():
            read_object(model_path / name)
    file = model_path / "tokenizer.json"
    if file.exists():
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # it raises bare ones
            raise _damaged(file, f"it holds no tokenizer: {error}") from error


def _damaged(file: Path, what: str) -> DataError:
    return DataError(
        f"a file of the model is damaged: {what}",
        where=str(file),
        remedy="take an undamaged copy: save_pretrained() it anew or download it again; "
        "`selfkd model pull` mends a known model",
    )
