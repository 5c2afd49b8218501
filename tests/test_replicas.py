"""Several engines behind one sampler: what waits for the driver, how they stop. No processes."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import Stopped
from selfkd.sampling.actor import COMPLETIONS, Progress, Shard
from selfkd.sampling.replicas import Replicas
from selfkd.sampling.sync import Restart
from tests.engines import drawn

NOTHING = COMPLETIONS.empty_table()


class Pool:
    """Makes empty shards, in `seconds` each."""

    max_restarts = 0

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.made = 0

    def stale(self, weights: Any) -> None: ...

    def held(self, *arguments: Any) -> None: ...

    def attempt(
        self, policy: str, path: Path, canary: Any, shards: Sequence[Any], sampling: Any, check: Any
    ) -> Iterator[Shard | Progress]:
        for index, _ in shards:
            time.sleep(self._seconds)
            check()
            self.made += 1
            yield Shard(index, NOTHING)


def shards_of(pools: Sequence[Any], check: Any = lambda: None) -> Generator[Shard]:
    """Forty shards, as they come."""
    sampler = Replicas(pools, Restart(), check)
    items = sampler.generate("base", Path(), [], [(i, ()) for i in range(40)], drawn())
    return (item for item in items if isinstance(item, Shard))


def test_engines_wait_for_a_driver_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfkd.sampling.replicas.AHEAD", 3)
    pools = [Pool(), Pool()]
    before = threading.active_count()
    shards = shards_of(pools)
    indices = [next(shards).index]
    time.sleep(0.5)
    # The one that was taken, those that wait, and the one that each engine holds on to.
    assert sum(pool.made for pool in pools) <= 1 + 3 + 2
    indices += [shard.index for shard in shards]
    assert sorted(indices) == list(range(40))
    next(shards := shards_of(pools))
    shards.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("seconds", [0.0, 0.6])
def test_a_stop_waits_for_a_shard_in_the_making_and_for_no_other(seconds: float) -> None:
    def stop_asked() -> None:
        raise Stopped("stopped by SIGINT")

    arrived = 0
    with pytest.raises(Stopped):
        for _ in shards_of([Pool(seconds), Pool(seconds)], stop_asked):
            arrived += 1
    assert arrived == 1
