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

CANARY_LIMIT = {"float32": 0.02, "bfloat16": 0.15}
"""Largest mean difference in nats between sampler and trainer that still means the same weights.
benchmarks/canary.py prints the measured differences of right and of stale weights."""


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
        """Make the engine hold `policy`, verified against `canary` where there is one."""
        if self._actor is not None and self._policy != policy and self._sync == "restart":
            self.close()
        fresh = self._actor is None
        if fresh:
            self._start(policy, path)
        elif self._policy != policy:
            loading = self._actor.load.remote(policy, str(path), canary)
            self._get(loading, f"the weights of {policy}")
            self._policy = policy
        else:
            return
        if not canary or self._matches(canary):
            return
        if not fresh:
            self.close()
            self._start(policy, path)
            if self._matches(canary):
                return
        self.close()
        raise DataError(
            f"a fresh engine does not reproduce the trainer's log-probabilities of {policy}",
            where=str(path),
            remedy="the checkpoint is damaged: delete it and its train step, then resume",
        )

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
        self._policy = policy

    def _matches(self, canary: Canary) -> bool:
        difference = self._get(self._actor.canary.remote(canary), "the weight check")
        return difference <= CANARY_LIMIT[self._engine.options["dtype"]]

    def _get(self, ref: Any, what: str) -> Any:
        return self._cluster.get(ref, what, timeout=self._start_timeout, check=self._check)
