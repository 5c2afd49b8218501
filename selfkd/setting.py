"""What was settled before a run starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfkd.cluster import Place


@dataclass(frozen=True, slots=True)
class Setting:
    """What was settled before a run starts: model, engine kind, memory, devices."""

    model_path: Path
    tokenizer: Any
    engine: Literal["vllm", "transformers"]
    swap: bool
    """Sampler and trainer take turns in memory."""
    context: int
    """Longest prompt plus completion, tokens."""
    sampler: Place
    """What the sampler reserves of the cluster, each of its replicas."""
    trainer: Place
