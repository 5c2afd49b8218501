"""Reads and writes model directories (HF format, safetensors only)."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

COPIED = (".json", ".jinja", ".model", ".txt")
"""Endings of what a model directory holds beside weights: tokenizer, templates, generation config.
Anything else, such as pickled weights, stays behind."""


def load(path: str | Path) -> Any:
    """The model of a directory, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Give what the system answers to safetensors as an OSError with its number."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), str(error)) from error
        raise


def save(model: Any, dtype: str, start: Path, out: Path) -> None:
    """Write the weights in `dtype`, and everything else as it is in the start's directory.

    Training changed the model's configs, and some generation configs that are in use are refused by
    `save_pretrained`.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    with file_errors():
        model.to(getattr(torch, dtype)).save_pretrained(out)
    (out / "generation_config.json").unlink()
    for file in start.iterdir():
        own = file.name == "MANIFEST.json" or file.name.endswith(".index.json")
        if file.name.endswith(COPIED) and not own:
            shutil.copy(file, out / file.name)
    config = json.loads((start / "config.json").read_text())
    config.pop("torch_dtype", None)  # the older name of dtype
    (out / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
