"""The driver's side of sampling: keeps an engine alive, on the right weights, and checked."""

import threading
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
from selfkd.sampling.base import Answer, Sampling, Work

CALLERS = 64
"""Threads of the sampler's process: one that generates, and one for each judge that calls."""

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
    """One engine actor, replaced when it dies, at most `max_restarts` times in a row.

    Judges call from threads of their own while another generates, all of them under one policy.
    """

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
        self._changing = threading.RLock()
        """Held while the actor or its weights are replaced."""
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
        losses = _Losses(self._max_restarts)
        while owed:
            actor = self._held(policy, path, canary)
            try:
                generator = actor.generate.options(num_returns="streaming").remote(
                    policy, tuple(owed.items()), sampling
                )
                what = "the next completions"
                for item in self._cluster.stream(
                    generator, what, timeout=self._silence_timeout, check=self._check
                ):
                    if isinstance(item, Shard):
                        del owed[item.index]
                        losses.count = 0
                    yield item
                if owed:
                    raise InfrastructureError(
                        f"the engine left {len(owed)} of {len(shards)} shards without an answer",
                        where="engine",
                    )
            except ActorLost as error:
                self._lost(actor)
                losses.add(error)

    def serve(
        self, policy: str, path: Path, canary: Canary, work: Sequence[Work], check: Check
    ) -> list[dict[str, Answer]]:
        """Answers by request id to each piece of work, beside what is being generated.

        May be called from any thread, for the policy that is generated with, or while nothing is.
        """
        losses = _Losses(self._max_restarts)
        while True:
            actor = self._held(policy, path, canary)
            try:
                stream = actor.serve.options(num_returns="streaming").remote(policy, tuple(work))
                answers: list[dict[str, Answer]] = [{} for _ in work]
                what, silence = "answers to a judge's calls", self._silence_timeout
                for group in self._cluster.stream(stream, what, timeout=silence, check=check):
                    for index, request_id, answer in group:
                        answers[index][request_id] = answer
                return answers
            except ActorLost as error:
                self._lost(actor)
                losses.add(error)

    def structured(self, policy: str, path: Path, canary: Canary) -> bool:
        """Whether the engine holds completions to a schema."""
        held = self._held(policy, path, canary)
        return self._get(held.structured.remote(), "the engine to say what it can")

    def _held(self, policy: str, path: Path, canary: Canary) -> Any:
        """The actor, holding `policy`; an actor that is lost on the way there is replaced."""
        losses = _Losses(self._max_restarts)
        while True:
            with self._changing:
                try:
                    self.hold(policy, path, canary)
                    return self._actor
                except ActorLost as error:
                    self._lost(self._actor)
                    losses.add(error)

    def _lost(self, actor: Any) -> None:
        """Close the actor that died, unless somebody else has replaced it already."""
        with self._changing:
            if self._actor is actor:
                self.restarts += 1
                self.close()

    def hold(self, policy: str, path: Path, canary: Canary) -> None:
        """Make the engine hold `policy`, verified against `canary` where there is one.

        Weights are replaced in place where that can be verified, or else by a fresh engine.
        """
        if self._actor is not None:
            if self._policy == policy:
                return
            if canary and self._sync != "restart" and self._update(policy, path, canary):
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
            SamplerActor,
            self._engine,
            policy,
            str(path),
            self._seed,
            gpus=self._gpus,
            concurrency=CALLERS,
        )
        self._get(self._actor.policy.remote(), f"the {self._engine.kind} engine to start")
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


class _Losses:
    """Deaths of the engine in a row."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def add(self, error: ActorLost) -> None:
        """Count one; InfrastructureError if that is one too many."""
        self.count += 1
        if self.count > self._limit:
            raise InfrastructureError(
                f"the sampler died {self.count} times in a row ({error.message})",
                where="engine",
                remedy="lower engine.max_num_seqs or engine.kv_cache_gib, then resume",
            ) from error
