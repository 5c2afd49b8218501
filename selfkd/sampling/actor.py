"""The sampler process: one engine, asked by several threads at once (see `desk`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from selfkd.hardware import FreedMemory
from selfkd.imports import large_imports, spare_pandas
from selfkd.records import texts
from selfkd.sampling.base import Answer, Completion, Engine, Request, Sampling, Work
from selfkd.sampling.desk import Desk
from selfkd.sampling.sync import Canary
from selfkd.sampling.transfer import Receiver
from selfkd.training.base import CANARY_END

ShardRequests = tuple[int, tuple[Request, ...]]

Served = tuple[int, str, Answer]
"""Number of a piece of work, id of one of its requests, and the answer to it."""

ENGINES = {
    "vllm": "selfkd.sampling.vllm:VLLMEngine",
    "transformers": "selfkd.sampling.transformers:TransformersEngine",
}

COMPLETIONS = pa.schema(
    [
        ("request", pa.string()),
        ("index", pa.int32()),
        ("completion", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("finish", pa.string()),
        ("logprob", pa.float64()),
    ]
)
"""`index` counts the completions of a request."""

IN_HAND = 4096
"""Sequences that an engine is given at once (two full batches, if those are more), and that it is
left to do when it is given more. That happens only while the driver takes what is done: so at most
twice as many wait here for a slow one."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What starts an engine, in plain values."""

    kind: str
    """`vllm`, `transformers`, or `module:Class` of an `Engine`."""
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """Requests and tokens finished so far in this call, and the seconds it took."""

    requests: int
    tokens: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Shard:
    """The completions of one shard, as rows of `COMPLETIONS`, in the order they were asked for."""

    index: int
    completions: pa.Table

    @classmethod
    def of(cls, index: int, completions: Mapping[str, Sequence[Completion]]) -> "Shard":
        """A shard of completions by request id."""
        rows = [
            (request, k, completion)
            for request, several in completions.items()
            for k, completion in enumerate(several)
        ]
        columns = [
            pa.array([request for request, _, _ in rows], type=pa.string()),
            pa.array([k for _, k, _ in rows], type=pa.int32()),
            texts([c.text for _, _, c in rows]),
            pa.array([c.tokens for _, _, c in rows], type=pa.list_(pa.int32())),
            pa.array([c.finish for _, _, c in rows], type=pa.string()),
            pa.array([c.logprob for _, _, c in rows], type=pa.float64()),
        ]
        return cls(index, pa.Table.from_arrays(columns, schema=COMPLETIONS))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean absolute differences of log-probabilities, in nats; infinite where one is no number."""

    weights: float
    """Between engine and trainer, on the sequence where they differ most."""
    caches: float
    """Between the engine with and without its cached prefixes, on the longest sequence."""


class SamplerActor(Receiver):
    """Lives as long as the run. Every request names the policy it is meant for.

    Its methods may be called from several threads at once.
    """

    def __init__(self, engine: EngineOptions, policy: str, path: str, seed: int) -> None:
        spare_pandas()
        self._desk = Desk(lambda: _start(engine, policy, path, seed))
        self._freed = FreedMemory()
        self._in_hand = max(IN_HAND, 2 * engine.options.get("max_num_seqs", 0))

    @property
    def _engine(self) -> Engine:
        return self._desk.engine

    def load(self, policy: str, path: str, canary: Canary) -> None:
        """Hold the weights of `policy` from now on.

        What `canary` compares with the cache is scored first, so that a prefix cache that outlives
        its weights shows later.
        """

        def load(engine: Engine) -> None:
            if engine.policy != policy:
                self._score(engine, canary)
                engine.load(policy, path)
                self._freed.settle()

        self._desk.alone(load)

    def expect(self, canary: Canary) -> None:
        """Score a canary before weights are sent, as `load` does."""
        self._desk.alone(lambda engine: self._score(engine, canary))

    def _score(self, engine: Engine, canary: Canary) -> None:
        if engine.policy:  # else it sleeps, and has no caches
            engine.logprobs([max(self._sequences(canary), key=len)])

    def policy(self) -> str:
        """The policy whose weights are held."""
        return self._engine.policy

    def sleep(self) -> bool:
        """Give the engine's memory back until it is loaded again; False where it cannot."""
        return self._desk.alone(lambda engine: engine.sleep())

    def structured(self) -> bool:
        """Whether the engine holds completions to a schema."""
        return self._engine.structured

    def canary(self, expected: Canary) -> Agreement:
        """How well the weights held agree with the trainer's, and the caches with the weights.

        Completions read cached prefixes, which log-probabilities of a whole sequence never do: so
        the end of one is scored in both ways. The longest is: a prefix shorter than a block of the
        cache is never read from it.
        """
        return self._desk.alone(lambda engine: self._agreement(engine, expected))

    def _agreement(self, engine: Engine, expected: Canary) -> Agreement:
        sequences = self._sequences(expected)
        scored = engine.logprobs(sequences)
        weights = max(
            _distance(got, wanted[: len(got)])
            for got, (_, wanted) in zip(scored, expected, strict=True)
        )
        tokens, got = max(zip(sequences, scored, strict=True), key=lambda pair: len(pair[0]))
        count = min(CANARY_END, len(tokens) - 1)
        return Agreement(weights, _distance(engine.last_logprobs(tokens, count), got[-count:]))

    def _sequences(self, canary: Canary) -> list[list[int]]:
        # One token less than the context: an engine writes one whenever it scores.
        return [list(tokens[: self._engine.context - 1]) for tokens, _ in canary]

    def generate(
        self, policy: str, shards: Sequence[ShardRequests], sampling: Sampling
    ) -> Iterator[Shard | Progress]:
        """Complete every shard's requests; yield shards as they fill, and progress in between.

        Where nobody takes what is yielded, no more than is in hand gets done.
        """
        shard_of = {r.id: index for index, requests in shards for r in requests}
        order = {index: [r.id for r in requests] for index, requests in shards}
        done: dict[int, dict[str, list[Completion]]] = {index: {} for index in order}
        requests = tokens = 0
        started = reported = time.monotonic()
        every = tuple(r for _, shard in shards for r in shard)
        at_once = self._in_hand // max((r.n for r in every), default=1) or 1
        for request_id, answer in self._desk.answers(policy, Work(every, sampling), at_once):
            completions: list[Completion] = answer  # type: ignore[assignment]
            index = shard_of[request_id]
            done[index][request_id] = completions
            requests += 1
            tokens += sum(len(c.tokens) for c in completions)
            if time.monotonic() - reported > 0.5:
                reported = time.monotonic()
                yield Progress(requests, tokens, reported - started)
            if len(done[index]) == len(order[index]):
                found = done.pop(index)
                yield Shard.of(index, {id: found[id] for id in order[index]})
        yield Progress(requests, tokens, time.monotonic() - started)

    def serve(self, policy: str, work: Sequence[Work]) -> Iterator[list[Served]]:
        """Answers to each piece of work, all of it in hand at once, a group twice a second."""
        streams = [self._desk.answers(policy, piece) for piece in work]
        group: list[Served] = []
        reported = time.monotonic()
        for index, stream in enumerate(streams):
            for request_id, answer in stream:
                group.append((index, request_id, answer))
                if time.monotonic() - reported > 0.5:
                    yield group
                    group, reported = [], time.monotonic()
        yield group


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    mean = np.abs(np.array(one) - np.array(other)).mean()
    return float(mean) if np.isfinite(mean) else float("inf")


def _start(engine: EngineOptions, policy: str, path: str, seed: int) -> Engine:
    module, _, name = ENGINES.get(engine.kind, engine.kind).partition(":")
    with large_imports():
        kind = getattr(import_module(module), name)
    return kind(policy, path, seed=seed, **engine.options)
