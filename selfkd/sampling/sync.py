"""How an engine that runs comes to hold the weights of another policy.

`restart` gives up the engine: a new one reads the policy from disk. `reload` has the engine read it
in place. `nccl` and `ipc` send it from the memory of one GPU to those of the engines (vLLM's weight
transfer), so that it is read from disk once however many engines there are. These two are written
against vLLM 0.32 and have never been run: the machines this is tested on have no GPU.

No way is trusted: the pool checks the engine afterwards, and starts a new one where it must.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from selfkd.cluster import ActorLost, Cluster, Get, Place, kill
from selfkd.errors import InfrastructureError

SyncName = Literal["restart", "reload", "nccl", "ipc"]

Canary = Sequence[tuple[Sequence[int], Sequence[float]]]
"""(tokens, log-probabilities) of fixed sequences, as the trainer computed them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A policy as an engine is told of it."""

    policy: str
    path: Path
    """HF model directory."""
    canary: Canary


class WeightSync(Protocol):
    """One way to update engines; `engines` are handles of `SamplerActor`."""

    def update(self, engines: Sequence[Any], weights: Weights, get: Get) -> bool:
        """Whether all of the engines took the weights; if not, they are to be started anew.

        Raises DataError where the checkpoint does not fit, and the old weights are held on to;
        ActorLost where an engine died.
        """
        ...

    def close(self) -> None:
        """End what processes it has."""
        ...


def make_sync(name: SyncName, cluster: Cluster, place: Place) -> WeightSync:
    """The way of that name; `place` is for a process that sends weights."""
    if name == "restart":
        return Restart()
    return Reload() if name == "reload" else Transfer(name, cluster, place)


class Restart:
    """Never in place."""

    def update(self, engines: Sequence[Any], weights: Weights, get: Get) -> bool:
        """No engine takes anything."""
        return False

    def close(self) -> None:
        """Nothing runs."""


class Reload:
    """Every engine reads the policy from disk."""

    def update(self, engines: Sequence[Any], weights: Weights, get: Get) -> bool:
        """See `WeightSync.update`."""
        arguments = (weights.policy, str(weights.path), weights.canary)
        loading = [engine.load.remote(*arguments) for engine in engines]
        return _all_done(loading, weights, get)

    def close(self) -> None:
        """Nothing runs."""


class Transfer:
    """One process reads the policy from disk and sends it to all engines at once."""

    def __init__(self, backend: Literal["nccl", "ipc"], cluster: Cluster, place: Place) -> None:
        self._backend = backend
        self._cluster = cluster
        self._place = place
        self._sender: Any = None

    def update(self, engines: Sequence[Any], weights: Weights, get: Get) -> bool:
        """See `WeightSync.update`."""
        from selfkd.sampling.transfer import Sender

        if self._sender is None:
            self._sender = self._cluster.start(Sender, self._backend, place=self._place)
        try:
            for scored in [engine.expect.remote(weights.canary) for engine in engines]:
                get(scored, "the engines to score their canary")
            sending = self._sender.send.remote(weights.policy, str(weights.path), list(engines))
            return _all_done([sending], weights, get)
        except ActorLost:
            self.close()
            raise

    def close(self) -> None:
        """End the sender."""
        if self._sender is not None:
            kill(self._sender)
        self._sender = None


def _all_done(answers: Sequence[Any], weights: Weights, get: Get) -> bool:
    try:
        for answer in answers:
            get(answer, f"the weights of {weights.policy}")
    except ActorLost:
        raise
    except InfrastructureError:
        return False
    return True
