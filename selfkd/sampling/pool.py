"""The driver's side of one engine: keeps it alive, on the right weights, and checked."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfkd.cluster import ActorLost, Check, Cluster, Get, Place, kill
from selfkd.errors import DataError, InfrastructureError
from selfkd.nodes import await_start
from selfkd.sampling.actor import EngineOptions, Progress, SamplerActor, Shard, ShardRequests
from selfkd.sampling.base import Answer, Sampling, Work
from selfkd.sampling.sync import Canary, Weights, WeightSync
from selfkd.sampling.weights import same_architecture
from selfkd.stopping import Patient

CALLERS = 64
"""Threads of the sampler's process: one that generates, and one for each judge that calls."""

AHEAD = 16
"""Shards and progress reports that wait for the driver, at most, where judging is slow: shards of
300 tokens a sample then fit into Ray's memory here. The engine goes on for a while (`IN_HAND`)."""

WEIGHTS_LIMIT = {"float32": 0.02, "bfloat16": 0.1}
"""Largest `Agreement.weights` that still means the same weights, by the engine's dtype.

benchmarks/canary.py prints what right and stale weights measure. SmolLM2-135M over four rounds of
6 to 32 steps, in bfloat16: 0.049 to 0.053 against 0.14 to 0.26. After one in float32: 0.000 against
0.36."""
CACHES_LIMIT = {"float32": 0.001, "bfloat16": 0.005}
"""Largest `Agreement.caches` after which an engine is not started anew. Measured on the same: 0.000
against 0.030 to 0.063. In float32 after four steps: 0.000 against 0.042."""
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
        place: Place,
        sync: WeightSync,
        max_restarts: int,
        start_timeout: float,
        silence_timeout: float,
        check: Check,
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._seed = seed
        self._place = place
        self._sync = sync
        self.max_restarts = max_restarts
        self._start_timeout = start_timeout
        self._silence_timeout = silence_timeout
        self._check = check
        self._actor: Any = None
        self._policy = ""
        self._changing = threading.RLock()
        """Held while the actor or its weights are replaced."""
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
        losses = Losses(self.max_restarts)
        while owed:
            try:
                for item in self.attempt(policy, path, canary, tuple(owed.items()), sampling):
                    if isinstance(item, Shard):
                        del owed[item.index]
                        losses.count = 0
                    yield item
                    if isinstance(item, Shard):
                        self._check()  # whoever took the shard has recorded it
            except ActorLost as error:
                losses.add(error)

    def attempt(
        self,
        policy: str,
        path: Path,
        canary: Canary,
        shards: Sequence[ShardRequests],
        sampling: Sampling,
        check: Check | None = None,
    ) -> Iterator[Shard | Progress]:
        """As `generate`, until all is done or the engine dies: then ActorLost."""
        actor = self.held(policy, path, canary, check)
        streaming = actor.generate.options(
            num_returns="streaming", _generator_backpressure_num_objects=AHEAD
        )
        stream = self._cluster.stream(
            streaming.remote(policy, tuple(shards), sampling),
            "the next completions",
            timeout=self._silence_timeout,
            check=check or Patient(self._check),
        )
        left = len(shards)
        try:
            for item in stream:
                left -= isinstance(item, Shard)
                yield item
        except ActorLost:
            self._lost(actor)
            raise
        if left:
            raise InfrastructureError(
                f"the engine left {left} of {len(shards)} shards without an answer",
                where="engine",
            )

    def serve(
        self, policy: str, path: Path, canary: Canary, work: Sequence[Work], check: Check
    ) -> list[dict[str, Answer]]:
        """Answers by request id to each piece of work, beside what is being generated.

        May be called from any thread, for the policy that is generated with, or while nothing is.
        """
        losses = Losses(self.max_restarts)
        while True:
            actor = self.held(policy, path, canary, check)
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
        held = self.held(policy, path, canary)
        return self.getter()(held.structured.remote(), "the engine to say what it can")

    def held(self, policy: str, path: Path, canary: Canary, check: Check | None = None) -> Any:
        """The actor, holding `policy`; an actor that is lost on the way there is replaced."""
        losses = Losses(self.max_restarts)
        while True:
            with self._changing:
                try:
                    self.hold(policy, path, canary, check)
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

    def hold(self, policy: str, path: Path, canary: Canary, check: Check | None = None) -> None:
        """Make the engine hold `policy`, verified against `canary` where there is one.

        Weights are replaced in place where that can be verified, or else by a fresh engine; so is
        a model of another shape, such as a teacher that samples.
        """
        weights, get = Weights(policy, path, canary), self.getter(check)
        if (actor := self.stale(weights)) and self._sync.update([actor], weights, get):
            self.took(weights, get)
        if self._policy == policy:
            return
        self.close()
        self._start(policy, path, get)
        if canary and not self._matches(canary, get, updated=False):
            self.close()
            raise DataError(
                f"a fresh engine does not reproduce the trainer's log-probabilities of {policy}",
                where=str(path),
                remedy="the checkpoint is damaged: delete it and its train step, then resume",
            )

    def stale(self, weights: Weights) -> Any:
        """The engine's actor, if it runs, holds other weights of that shape, and new ones could be
        verified."""
        update = self._actor is not None and self._policy != weights.policy and weights.canary
        fits = self._started_with and same_architecture(self._started_with, weights.path)
        return self._actor if update and fits else None

    def took(self, weights: Weights, get: Get) -> None:
        """The engine was given weights: it holds them from now on, or is closed if it does not."""
        if self._matches(weights.canary, get, updated=True):
            self._policy = weights.policy
        else:
            self.close()

    def rest(self) -> None:
        """Give the engine's memory to others: it sleeps where it can, or else ends."""
        if self._actor is None:
            return
        if self.getter()(self._actor.sleep.remote(), "the engine to sleep"):
            self._policy = ""
        else:
            self.close()

    def close(self) -> None:
        """End the engine's process."""
        if self._actor is not None:
            kill(self._actor)
        self._actor, self._policy = None, ""

    def _start(self, policy: str, path: Path, get: Get) -> None:
        self._actor = self._cluster.start(
            SamplerActor,
            self._engine,
            policy,
            str(path),
            self._seed,
            place=self._place,
            concurrency=CALLERS,
        )
        cache = self._engine.options.get("kv_cache_gib")
        asked = f", with {cache:g} GiB for keys and values," if cache else ""
        await_start(self._actor, f"the {self._engine.kind} engine{asked}", self._place, get)
        self._started_with = path
        self._policy = policy

    def _matches(self, canary: Canary, get: Get, *, updated: bool) -> bool:
        """Whether the engine holds the canary's weights, and no caches of older ones."""
        agreement = get(self._actor.canary.remote(canary), "the weight check")
        dtype = self._engine.options["dtype"]
        if not updated:
            return agreement.weights <= FRESH * WEIGHTS_LIMIT[dtype]
        return agreement.weights <= WEIGHTS_LIMIT[dtype] and agreement.caches <= CACHES_LIMIT[dtype]

    def getter(self, check: Check | None = None) -> Get:
        """What waits for an answer of the engine, as long as one may take to start."""
        return lambda ref, what: self._cluster.get(
            ref, what, timeout=self._start_timeout, check=check or self._check
        )


class Losses:
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
