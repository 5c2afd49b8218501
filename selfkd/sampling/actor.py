"""The sampler process: one engine, fed whole batches, handing back whole shards."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfkd.errors import InfrastructureError
from selfkd.sampling.base import Completion, Engine, Request, Sampling

ShardRequests = tuple[int, tuple[Request, ...]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What starts an engine, in plain values: kind (`vllm` or `transformers`) and its options."""

    kind: Literal["vllm", "transformers"]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """Requests and tokens finished so far in this call."""

    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The completions of one shard, by request id."""

    index: int
    completions: dict[str, list[Completion]]


class SamplerActor:
    """Lives as long as the run. Every request names the policy it is meant for."""

    def __init__(self, engine: EngineOptions, policy: str, path: str, seed: int) -> None:
        self._engine = _start(engine, policy, path, seed)

    def load(self, policy: str, path: str) -> None:
        """Hold the weights of `policy` from now on."""
        if self._engine.policy != policy:
            self._engine.load(policy, path)

    def policy(self) -> str:
        """The policy whose weights are held."""
        return self._engine.policy

    def canary(self, expected: Sequence[tuple[Sequence[int], Sequence[float]]]) -> float:
        """Mean absolute difference, in nats, between this engine's log-probabilities and those
        the trainer computed on the same checkpoint.

        The long sequence is scored twice: a stale prefix cache shows only on a repeat.
        """
        sequences = [list(tokens) for tokens, _ in expected]
        worst = 0.0
        for _ in range(2):
            for got, (_, want) in zip(self._engine.logprobs(sequences), expected, strict=True):
                difference = np.abs(np.array(got[1:]) - np.array(want[1:]))
                worst = max(worst, float(np.mean(difference)))
        return worst if np.isfinite(worst) else float("inf")

    def generate(
        self, policy: str, shards: Sequence[ShardRequests], sampling: Sampling
    ) -> Iterator[Shard | Progress]:
        """Complete every shard's requests; yield shards as they fill, and progress in between."""
        if self._engine.policy != policy:
            raise InfrastructureError(
                f"the sampler holds {self._engine.policy}, asked for samples of {policy}"
            )
        shard_of = {r.id: index for index, requests in shards for r in requests}
        sizes = {index: len(requests) for index, requests in shards}
        done: dict[int, dict[str, list[Completion]]] = {index: {} for index in sizes}
        requests = tokens = 0
        reported = time.monotonic()
        every = [r for _, shard in shards for r in shard]
        for request_id, completions in self._engine.generate(every, sampling):
            index = shard_of[request_id]
            done[index][request_id] = completions
            requests += 1
            tokens += sum(len(c.tokens) for c in completions)
            if time.monotonic() - reported > 0.5:
                reported = time.monotonic()
                yield Progress(requests, tokens)
            if len(done[index]) == sizes[index]:
                yield Shard(index, done.pop(index))
        yield Progress(requests, tokens)


def _start(engine: EngineOptions, policy: str, path: str, seed: int) -> Engine:
    if engine.kind == "vllm":
        from selfkd.sampling.vllm import VLLMEngine

        return VLLMEngine(policy, path, seed=seed, **engine.options)
    from selfkd.sampling.transformers import TransformersEngine

    return TransformersEngine(policy, path, seed=seed, **engine.options)
