"""Several engines that share the work of one sampler, each in a process of its own on any node.

Shards go to whichever engine is free. What an engine has not done when it dies goes to the others,
and a new one is started meanwhile; an engine that cannot be is given up for the time being, as long
as another one lives.
"""

import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from selfkd.cluster import ActorLost, Check
from selfkd.errors import InfrastructureError
from selfkd.sampling.actor import Progress, Shard, ShardRequests
from selfkd.sampling.base import Answer, Sampling, Work
from selfkd.sampling.pool import AHEAD, Losses, SamplerPool
from selfkd.sampling.sync import Canary, Weights, WeightSync
from selfkd.stopping import Patient

T = TypeVar("T")


class Sampler(Protocol):
    """What a run asks of its sampler, be it one engine or several."""

    def generate(
        self,
        policy: str,
        path: Path,
        canary: Canary,
        shards: Sequence[ShardRequests],
        sampling: Sampling,
    ) -> Iterator[Shard | Progress]:
        """Complete the shards under `policy`, each exactly once, whatever dies meanwhile."""
        ...

    def serve(
        self, policy: str, path: Path, canary: Canary, work: Sequence[Work], check: Check
    ) -> list[dict[str, Answer]]:
        """Answers by request id to each piece of work, beside what is being generated."""
        ...

    def structured(self, policy: str, path: Path, canary: Canary) -> bool:
        """Whether completions are held to a schema."""
        ...

    def rest(self) -> None:
        """Give memory to others, until there is something to sample again."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...


class Replicas:
    """A sampler of several engines."""

    def __init__(
        self,
        pools: Sequence[SamplerPool],
        sync: WeightSync,
        check: Check,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`tell` is told of engines that are given up."""
        self.pools = pools
        self._sync = sync
        self._check = check
        self._tell = tell
        self._turn = itertools.count()

    def generate(
        self,
        policy: str,
        path: Path,
        canary: Canary,
        shards: Sequence[ShardRequests],
        sampling: Sampling,
    ) -> Iterator[Shard | Progress]:
        """See `Sampler.generate`. Raises what the last engine that was left raises."""
        self._update(Weights(policy, path, canary))
        job = _Job(shards, (policy, path, canary), sampling, len(self.pools))
        threads = [
            threading.Thread(target=job.work, args=(pool,), daemon=True) for pool in self.pools
        ]
        try:
            for thread in threads:
                thread.start()
            yield from job.items(self._check, self._tell)
        finally:
            job.stop()
            for thread in threads:
                thread.join()

    def serve(
        self, policy: str, path: Path, canary: Canary, work: Sequence[Work], check: Check
    ) -> list[dict[str, Answer]]:
        """See `Sampler.serve`; engines take turns."""
        return self._any(lambda pool: pool.serve(policy, path, canary, work, check))

    def structured(self, policy: str, path: Path, canary: Canary) -> bool:
        """See `Sampler.structured`; all engines are alike."""
        return self._any(lambda pool: pool.structured(policy, path, canary))

    def _any(self, ask: Callable[[SamplerPool], T]) -> T:
        """The answer of the engine whose turn it is, or of the next one that lives."""
        first = next(self._turn)
        errors = []
        for i in range(len(self.pools)):
            try:
                return ask(self.pools[(first + i) % len(self.pools)])
            except InfrastructureError as error:
                errors.append(error)
        raise errors[-1]

    def _update(self, weights: Weights) -> None:
        """Give all engines that run the weights at once; the others start with them."""
        stale = [pool for pool in self.pools if pool.stale(weights)]
        if not stale:
            return
        actors = [pool.stale(weights) for pool in stale]
        # An engine that died is found out, and replaced, where it is next asked for something.
        with suppress(ActorLost):
            get = stale[0].getter()
            if self._sync.update(actors, weights, get):
                for pool in stale:
                    pool.took(weights, get)

    @property
    def restarts(self) -> int:
        """Engines that died, all in all."""
        return sum(pool.restarts for pool in self.pools)

    def rest(self) -> None:
        """See `Sampler.rest`."""
        for pool in self.pools:
            pool.rest()

    def close(self) -> None:
        """End all engines."""
        for pool in self.pools:
            pool.close()
        self._sync.close()


class _Over(Exception):
    """There is nothing left to do for an engine that is still being started."""


class _Job:
    """The shards of one call, and who does which."""

    def __init__(
        self,
        shards: Sequence[ShardRequests],
        policy: tuple[str, Path, Canary],
        sampling: Sampling,
        engines: int,
    ) -> None:
        self._left = deque(shards)
        self._open = self._missing = len(shards)
        """Shards that nobody has completed; those that the driver has not got."""
        self._policy = policy
        self._sampling = sampling
        self._engines = engines
        """Engines that have not given up."""
        self._changed = threading.Condition()
        self._stopped = False
        self._out: queue.Queue[Shard | tuple[int, int] | BaseException] = queue.Queue(AHEAD)
        """What waits here for the driver; what more there is waits for room, with its engine."""

    def work(self, pool: SamplerPool) -> None:
        """Do shards with one engine until none is open; tell why, where it has to give up."""
        losses = Losses(pool.max_restarts)
        try:
            while True:
                try:
                    pool.held(*self._policy, self._wanted)  # before it takes any from the others
                    owed = dict(self._take())
                    if not owed:
                        return
                    self._attempt(pool, owed)
                    losses.count = 0
                except ActorLost as error:
                    losses.add(error)
        except _Over:
            return
        except BaseException as error:
            self._put(error)

    def _attempt(self, pool: SamplerPool, owed: dict[int, Any]) -> None:
        requests = tokens = 0
        items = pool.attempt(*self._policy, tuple(owed.items()), self._sampling, self._wanted)
        try:
            for item in items:
                if isinstance(item, Shard):
                    del owed[item.index]
                    self._close_one()
                    self._put(item)
                else:
                    self._put((item.requests - requests, item.tokens - tokens))
                    requests, tokens = item.requests, item.tokens
        finally:
            self._give_back(owed)

    def _put(self, item: "Shard | tuple[int, int] | BaseException") -> None:
        """Leave something for the driver, once it has room for it and unless it wants no more."""
        while not self._stopped:
            with suppress(queue.Full):
                return self._out.put(item, timeout=0.25)

    def _take(self) -> list[ShardRequests]:
        """Shards for a free engine: many while many are left, so that its batch is full, then
        fewer, so that all end together. None where all are done; waits while others may die."""
        with self._changed:
            while self._open and not self._left and not self._stopped:
                self._changed.wait(0.25)
            if not self._open or self._stopped:
                return []
            count = math.ceil(len(self._left) / (2 * self._engines))
            return [self._left.popleft() for _ in range(count)]

    def _give_back(self, owed: dict[int, Any]) -> None:
        with self._changed:
            self._left.extend(owed.items())
            self._changed.notify_all()

    def _close_one(self) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _wanted(self) -> None:
        """Called while an engine is waited for."""
        if self._stopped or not self._open:
            raise _Over

    def stop(self) -> None:
        """Nobody wants the rest."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def items(self, check: Check, tell: Callable[[str], None]) -> Iterator[Shard | Progress]:
        """What the engines make, as it comes, until all is there."""
        started = time.monotonic()
        requests = tokens = 0
        patient = Patient(check)
        while self._missing:
            patient()
            try:
                item = self._out.get(timeout=0.25)
            except queue.Empty:
                continue
            if isinstance(item, Shard):
                self._missing -= 1
                yield item
                check()  # whoever took the shard has recorded it
            elif isinstance(item, BaseException):
                self._given_up(item, tell)
            else:
                requests, tokens = requests + item[0], tokens + item[1]
                yield Progress(requests, tokens, time.monotonic() - started)
        yield Progress(requests, tokens, time.monotonic() - started)

    def _given_up(self, error: BaseException, tell: Callable[[str], None]) -> None:
        """Go on without an engine, if another is left and could do what this one could not."""
        with self._changed:
            self._engines -= 1
        if not self._engines or not isinstance(error, InfrastructureError):
            raise error
        tell(f"one sampler less for now, {self._engines} left: {error}")
