"""How much memory sampler and trainer need, and whether both fit at once.

The figures are estimates for planning: they decide between keeping both processes and swapping
them, and refuse a start that cannot fit. One parameter costs a sampler its weights twice on CPU
(vLLM keeps a packed copy), and a full fine-tuning 16 bytes: fp32 weights, gradients and two Adam
moments (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1); in bfloat16 4 more, the weights as
it sees them.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from selfkd.errors import InfrastructureError
from selfkd.hardware import memory_gib, trains_by_onednn
from selfkd.modelfiles import read_object, tensor_shapes

GIB = 2**30
PROCESS_GIB = 1.2
"""A Python process with torch and its engine loaded, before any weights."""
SHORT_ROW = 128
"""Tokens up to which a CPU keeps the attention scores of a training (`training/attention.py`)."""
USABLE = 0.85
"""Share of the machine's memory that a run may plan with."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Planned memory of one machine, GiB."""

    sampler: float
    trainer: float
    total: float

    @property
    def both_fit(self) -> bool:
        """Whether sampler and trainer may stay in memory together."""
        return self.sampler + self.trainer <= USABLE * self.total

    def check(self) -> None:
        """Raise InfrastructureError where not even one of the two fits."""
        for who, need in (("sampler", self.sampler), ("trainer", self.trainer)):
            if need > self.total:
                remedy = "lower engine.kv_cache_gib" if who == "sampler" else "set train.lora_rank"
                raise InfrastructureError(
                    f"the {who} needs about {need:.1f} GiB and this machine has {self.total:.1f}",
                    where="memory",
                    remedy=f"{remedy} or take a smaller model",
                )


def parameters(model_path: Path) -> int:
    """Parameters stored in a model directory, read from the safetensors headers.

    Raises DataError, as all of this file does, where a file of the model is damaged.
    """
    files = sorted(model_path.glob("*.safetensors"))
    return sum(prod(shape) for file in files for shape in tensor_shapes(file))


def context_length(model_path: Path) -> int:
    """Longest sequence the model was made for, tokens."""
    config = read_object(model_path / "config.json")
    return config.get("max_position_embeddings") or 2**31 - 1


def footprint(
    model_path: Path,
    *,
    kv_cache_gib: float,
    sampled_in: str,
    trained_in: str,
    lora_rank: int,
    batch_tokens: int,
) -> Footprint:
    """Plan for a model sampled and trained in the given dtypes.

    `batch_tokens` is the tokens of one forward pass of the trainer.
    """
    count = parameters(model_path)
    rounded = trained_in == "bfloat16"
    width = 2 if sampled_in == "bfloat16" else 4
    config = read_object(model_path / "config.json")
    sampler = PROCESS_GIB + 2 * width * count / GIB + kv_cache_gib
    state = 4 if lora_rank else 16 + 4 * rounded
    # Activations: about 34 values a token and layer at width `hidden_size` (Korthikanti et al.
    # 2022, arXiv:2205.05198), and fp32 logits with their gradient. Attention scores are kept of
    # short rows only, after the softmax in float32 and, where that is another one, in bfloat16.
    layers, hidden = config.get("num_hidden_layers", 0), config.get("hidden_size", 0)
    score = (6 if rounded else 4) if trains_by_onednn(trained_in) else 0
    scores = score * config.get("num_attention_heads", 0) * SHORT_ROW
    activations = batch_tokens * (
        layers * (34 * hidden * (1 if rounded else 2) + scores) + 8 * config.get("vocab_size", 0)
    )
    trainer = PROCESS_GIB + (state * count + activations) / GIB
    return Footprint(sampler, trainer, memory_gib())
