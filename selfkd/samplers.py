"""Makes samplers: that of a run, and one for a judge that is tried outside of any."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from selfkd.chat import load_tokenizer
from selfkd.cluster import ANYWHERE, Check, Cluster, Place
from selfkd.config import EngineConfig
from selfkd.enginecalls import EngineCalls
from selfkd.hardware import compute_dtype
from selfkd.memory import context_length
from selfkd.models import check_model_dir, resolve_model
from selfkd.policies import Policy, model_fingerprint
from selfkd.sampling.actor import EngineOptions
from selfkd.sampling.pool import SamplerPool
from selfkd.sampling.replicas import Replicas, Sampler
from selfkd.sampling.sync import make_sync

EngineKind = Literal["vllm", "transformers"]


def make_sampler(
    cluster: Cluster,
    engine: EngineConfig,
    kind: EngineKind,
    *,
    context: int,
    seed: int,
    place: Place,
    check: Check,
    tell: Callable[[str], None] = lambda text: None,
) -> Sampler:
    """A sampler that starts when it is first asked; `context` in tokens.

    `place` is what each of its replicas reserves; `tell` is told of those that are given up.
    """
    options: dict[str, Any] = {
        "dtype": compute_dtype(engine.dtype),
        "max_num_seqs": engine.max_num_seqs,
    }
    if kind == "vllm":
        options |= {
            "max_model_len": context,
            "kv_cache_gib": engine.kv_cache_gib,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "gpu_memory": engine.gpu_memory,
            "transfer": engine.sync if engine.sync in ("nccl", "ipc") else None,
        }
    sync = make_sync(engine.sync, cluster, Place(gpus=place.gpus))

    places = [place]
    if engine.replicas > 1:
        places = cluster.reserve(place, engine.replicas, "samplers")
    pools = [
        SamplerPool(
            cluster,
            EngineOptions(kind, options),
            seed=seed + number * 1_000_003,
            place=own,
            sync=sync,
            max_restarts=engine.max_restarts,
            start_timeout=engine.start_timeout,
            silence_timeout=max(600.0, engine.start_timeout),
            check=check,
        )
        for number, own in enumerate(places)
    ]
    return pools[0] if engine.replicas == 1 else Replicas(pools, sync, check, tell)


@contextlib.contextmanager
def calls_of_model(
    model: str, cluster: Cluster, kind: EngineKind, *, place: Place = ANYWHERE
) -> Iterator[EngineCalls]:
    """What answers a judge's calls with a model, as a run's sampler answers with its policy."""
    path = resolve_model(model)
    check_model_dir(path)
    tokenizer = load_tokenizer(path)
    engine = EngineConfig.model_validate({})
    context = min(engine.max_model_len, context_length(path))
    sampler = make_sampler(
        cluster, engine, kind, context=context, seed=0, place=place, check=lambda: None
    )
    try:
        policy = Policy("base", path, model_fingerprint(path), [])
        yield EngineCalls(sampler, policy, tokenizer, context, keep=False)
    finally:
        sampler.close()
