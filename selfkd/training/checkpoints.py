"""Reads and writes model directories (HF format, safetensors only)."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

COPIED = (".json", ".jinja", ".model", ".txt")
"""Endings of what a model directory holds beside weights: tokenizer, templates, generation config.
Anything else, such as pickled weights, stays behind."""
TOKENIZER = ("tokenizer", "chat_template", "special_tokens", "added_tokens", "vocab", "merges")
"""How the names of a tokenizer's files begin."""


def load(path: str | Path) -> Any:
    """The model of a directory, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)


def load_part(path: str | Path, dtype: str) -> Any:
    """This worker's part of that model, of as many as train together (FSDP2).

    What others hold is gathered layer by layer where it is needed, in `dtype`; gradients are summed
    in float32.
    """
    from transformers import AutoModelForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    workers = int(os.environ["WORLD_SIZE"])
    parts = DistributedConfig(fsdp_size=workers, fsdp_mixed_precision=dtype == "bfloat16")
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, distributed_config=parts
    )


def gathered(model: Any, start: Path) -> Any:
    """The model that workers hold in parts, whole and on the CPU, in the first one; None in others.

    `start`: the directory that the parts were loaded from.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if torch.distributed.get_rank():
        return None
    whole = load(start)
    whole.load_state_dict(weights)
    return whole


def tokenizer_files(path: str | Path) -> list[Path]:
    """The files of a model directory that make its tokenizer."""
    return sorted(f for f in Path(path).iterdir() if f.name.startswith(TOKENIZER))


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


class Weights(NamedTuple):
    """A model's weights in the dtype that they are stored in."""

    dtype: str
    state: dict[str, torch.Tensor]
    """By name; tied ones are one tensor. Buffers, such as rotary frequencies, are the model's."""


def cast(model: Any, dtype: str) -> Weights:
    """Copies of a model's weights in `dtype`."""
    copies = {id(p): p.data.to(getattr(torch, dtype)) for p in model.parameters()}
    state = model.state_dict(keep_vars=True)
    return Weights(dtype, {name: copies.get(id(v), v.detach()) for name, v in state.items()})


def take(model: Any, weights: Weights) -> None:
    """Have a model hold those weights in place of its own."""
    for name, parameter in model.named_parameters():
        parameter.data = weights.state[name]


def save(model: Any, weights: Weights, start: Path, out: Path) -> None:
    """Write the weights, and everything else as it is in the start's directory.

    Training changed the model's configs, and some generation configs that are in use are refused by
    `save_pretrained`. The model itself stays as it is.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    with file_errors():
        model.save_pretrained(out, state_dict=weights.state)
    (out / "generation_config.json").unlink()
    for file in start.iterdir():
        own = file.name == "MANIFEST.json" or file.name.endswith(".index.json")
        if file.name.endswith(COPIED) and not own:
            shutil.copy(file, out / file.name)
    config = json.loads((start / "config.json").read_text())
    config.pop("torch_dtype", None)  # the older name of dtype
    config["dtype"] = weights.dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
