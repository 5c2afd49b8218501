"""The driver's side of sampling: keeps an engine alive, on the right weights, and checked."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfkd.cluster import ActorLost, Check, Cluster, kill
from selfkd.errors import DataError, InfrastructureError
from selfkd.sampling.actor import (
    Canary,
    EngineOptions,
    Progress,
    SamplerActor,
    Shard,
    ShardRequests,
)
from selfkd.sampling.base import Sampling
from selfkd.sampling.weights import same_architecture

WEIGHTS_LIMIT = {"float32": 0.02, "bfloat16": 0.15}
"""Largest `Agreement.weights` that still means the same weights, by the engine's dtype.

benchmarks/canary.py prints what right and stale weights measure. SmolLM2-135M after one round on 36
examples: 0.000 against 0.36 in float32, 0.06 against 0.35 in bfloat16."""
CACHES_LIMIT = {"float32": 0.001, "bfloat16": 0.005}
"""Largest `Agreement.caches` after which an engine is not started anew. Measured as above: 0.000
against 0.024 in float32, 0.000 against 0.039 in bfloat16, and 0.015 after four steps only."""
FRESH = 3
"""How much larger the differences may be of an engine that read its weights from disk just now:
none can be stale, and a model that is noisier than those measured is not damaged."""


class SamplerPool:
    """One engine actor, replaced when it dies, at most `max_restarts` times in a row."""

    def __init__(
        self,
        cluster: Cluster,
        engine: EngineOptions,
        *,
        seed: int,
        gpus: float,
        sync: str,
        max_restarts: int,
        start_timeout: float,
        silence_timeout: float,
        check: Check,
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._seed = seed
        self._gpus = gpus
        self._sync = sync
        self._max_restarts = max_restarts
        self._start_timeout = start_timeout
        self._silence_timeout = silence_timeout
        self._check = check
        self._actor: Any = None
        self._policy = ""
        self._started_with: Path | None = None
        """Where the engine's process got its first weights from."""
        self.restarts = 0

    def generate(
        self,
        policy: str,
        path: Path,
        canary: Canary,
        shards: Sequence[ShardRequests],
        sampling: Sampling,
    ) -> Iterator[Shard | Progress]:
        """Complete the shards under `policy`, each exactly once, whatever dies meanwhile."""
        owed = dict(shards)
        failures = 0
        while owed:
            try:
                self.hold(policy, path, canary)
                generator = self._actor.generate.options(num_returns="streaming").remote(
                    policy, tuple(owed.items()), sampling
                )
                what = "the next completions"
                for item in self._cluster.stream(
                    generator, what, timeout=self._silence_timeout, check=self._check
                ):
                    if isinstance(item, Shard):
                        del owed[item.index]
                        failures = 0
                    yield item
                if owed:
                    raise InfrastructureError(
                        f"the engine left {len(owed)} of {len(shards)} shards without an answer",
                        where="engine",
                    )
            except ActorLost as error:
                failures += 1
                self.restarts += 1
                self.close()
                if failures > self._max_restarts:
                    raise InfrastructureError(
                        f"the sampler died {failures} times in a row ({error.message})",
                        where="engine",
                        remedy="lower engine.max_num_seqs or engine.kv_cache_gib, then resume",
                    ) from error

    def hold(self, policy: str, path: Path, canary: Canary) -> None:
        """Make the engine hold `policy`, verified against `canary` where there is one.

        Weights are replaced in place where that can be verified, or else by a fresh engine; so is
        a model of another shape, such as a teacher that samples.
        """
        if self._actor is not None:
            if self._policy == policy:
                return
            fits = self._started_with is not None and same_architecture(self._started_with, path)
            in_place = bool(canary) and fits and self._sync != "restart"
            if in_place and self._update(policy, path, canary):
                return
        self.close()
        self._start(policy, path)
        if canary and not self._matches(canary, updated=False):
            self.close()
            raise DataError(
                f"a fresh engine does not reproduce the trainer's log-probabilities of {policy}",
                where=str(path),
                remedy="the checkpoint is damaged: delete it and its train step, then resume",
            )

    def _update(self, policy: str, path: Path, canary: Canary) -> bool:
        """Replace the engine's weights in place; False if something of the old ones is left."""
        loading = self._actor.load.remote(policy, str(path), canary)
        try:
            self._get(loading, f"the weights of {policy}")
        except ActorLost:
            raise
        except InfrastructureError:
            return False
        self._policy = policy
        return self._matches(canary, updated=True)

    def close(self) -> None:
        """End the engine's process."""
        if self._actor is not None:
            kill(self._actor)
        self._actor, self._policy = None, ""

    def _start(self, policy: str, path: Path) -> None:
        self._actor = self._cluster.start(
            SamplerActor, self._engine, policy, str(path), self._seed, gpus=self._gpus
        )
        self._get(self._actor.policy.remote(), f"the {self._engine.kind} engine to start")
        self._started_with = path
        self._policy = policy

    def _matches(self, canary: Canary, *, updated: bool) -> bool:
        """Whether the engine holds the canary's weights, and no caches of older ones."""
        agreement = self._get(self._actor.canary.remote(canary), "the weight check")
        dtype = self._engine.options["dtype"]
        if not updated:
            return agreement.weights <= FRESH * WEIGHTS_LIMIT[dtype]
        return agreement.weights <= WEIGHTS_LIMIT[dtype] and agreement.caches <= CACHES_LIMIT[dtype]

    def _get(self, ref: Any, what: str) -> Any:
        return self._cluster.get(ref, what, timeout=self._start_timeout, check=self._check)
