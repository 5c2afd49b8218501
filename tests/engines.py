"""Builds engines, checkpoints and canaries for the tests of sampling."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from selfkd.cluster import ANYWHERE, Cluster
from selfkd.sampling.actor import EngineOptions, Shard
from selfkd.sampling.base import Completion, Sampling
from selfkd.sampling.pool import SamplerPool
from selfkd.sampling.sync import Reload

Weights = dict[str, torch.Tensor]


def drawn(**values: object) -> Sampling:
    """Sampling options; what is not given has its default."""
    return Sampling.model_validate(values)


def edited(path: Path, folder: Path, change: Callable[[Weights], object]) -> Path:
    """A copy of a model whose weights `change` has edited."""
    copy = folder / "edited"
    shutil.copytree(path, copy)
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def canary_of(path: Path, tokens: list[int]) -> list[tuple[list[int], list[float]]]:
    """What the trainer would report of a model directory, for one sequence."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return [(tokens, [0.0, *logits[range(len(tokens) - 1), tokens[1:]].tolist()])]


def make_pool(cluster: Cluster, kind: str, **options: object) -> SamplerPool:
    return SamplerPool(
        cluster,
        EngineOptions(kind, options),
        seed=0,
        place=ANYWHERE,
        sync=Reload(),
        max_restarts=2,
        start_timeout=120,
        silence_timeout=120,
        check=lambda: None,
    )


def by_request(shard: Shard) -> dict[str, list[Completion]]:
    """The completions of a shard, by request id."""
    found: dict[str, list[Completion]] = {}
    for row in shard.completions.to_pylist():
        completion = Completion(
            row["completion"], tuple(row["tokens"]), row["finish"], row["logprob"]
        )
        found.setdefault(row["request"], []).append(completion)
        assert len(found[row["request"]]) == row["index"] + 1
    return found


def inside(pool: SamplerPool, function: Callable[..., object]) -> Any:
    """The value of a function of the actor, called in its process."""
    import ray

    return ray.get(pool._actor.__ray_call__.remote(function), timeout=60)


def process(pool: SamplerPool) -> int:
    return inside(pool, lambda actor: os.getpid())


def resident_mib(pid: int) -> float:
    """Memory that a process of this machine holds."""
    status = Path(f"/proc/{pid}/status").read_text().split()
    return int(status[status.index("VmRSS:") + 1]) / 1024
