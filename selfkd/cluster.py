"""Ray: start or join a cluster, start actors, and wait for them without ever waiting silently."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from selfkd.errors import InfrastructureError, UsageError
from selfkd.hardware import cores


@dataclass(frozen=True, slots=True)
class Place:
    """What a process reserves of the cluster, and where."""

    gpus: float = 0
    cpus: float = 0
    """None by default: sampler and trainer take turns, and each gets every core."""
    group: Any = None
    """A Ray placement group, one of whose bundles the process goes to."""
    bundle: int = 0


ANYWHERE = Place()

Check = Callable[[], None]
"""Called while waiting; raises to give up (a stop was asked for)."""


class ActorLost(InfrastructureError):
    """An actor's process ended under a call."""


class Cluster:
    """A started or joined Ray cluster; closing it ends every process that it started."""

    def __init__(self, address: str, *, timeout: float) -> None:
        """`address` is `local`, `auto` or `ray://host:port`; `timeout` in seconds for placement."""
        self.address = address
        self.timeout = timeout

    def __enter__(self) -> "Cluster":
        # Ray reads these while it starts; a laptop run reports nothing and colours nothing.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray gives its workers niceness 15: any other program on the machine would starve a run.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # A busy machine takes longer than Ray's own 30 s to start a node.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
        import ray

        # Its warnings are about itself (token authentication is on); errors are raised.
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {"namespace": f"selfkd-{os.getpid()}", "log_to_driver": False}
        if self.address == "local":
            options |= {"address": "local", "num_cpus": cores(), "include_dashboard": False}
            options["object_store_memory"] = 256 * 2**20
        else:
            _refuse_client(self.address)
            options["address"] = self.address
            _check_reachable(self.address)
        try:
            ray.init(**options, logging_level=logging.ERROR, configure_logging=False)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise InfrastructureError(
                f"cannot reach a Ray cluster at {self.address!r}: {str(error).splitlines()[0]}",
                where="cluster.address",
                remedy="pass --local to run on this machine alone",
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()

    def start(
        self,
        cls: type,
        *args: Any,
        place: Place = ANYWHERE,
        threads: int | None = None,
        concurrency: int = 1,
    ) -> Any:
        """Start an actor of a plain class and return its handle; its constructor runs meanwhile.

        `concurrency`: how many of its methods may run at once, each in a thread of its own.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        environment = {
            "OMP_NUM_THREADS": str(threads or cores()),
            "TOKENIZERS_PARALLELISM": "false",
        }
        remote = ray.remote(cls).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place.group, place.bundle)
            if place.group
            else "DEFAULT",
            max_restarts=0,
            max_concurrency=concurrency,  # where it is 1, methods run in the main thread
            runtime_env={"env_vars": environment},
        )
        return remote.remote(*args)

    def reserve(self, place: Place, count: int, what: str) -> list[Place]:
        """Reserve `place` that many times, all or none, on as many nodes as possible.

        InfrastructureError where they do not fit into the cluster within its time-out.
        """
        import ray
        from ray.util import placement_group, remove_placement_group

        bundle = {name: n for name, n in (("CPU", place.cpus), ("GPU", place.gpus)) if n}
        group = placement_group([bundle] * count, strategy="SPREAD")
        if not group.wait(self.timeout):
            remove_placement_group(group)
            wanted = " and ".join(f"{n:g} {name}" for name, n in bundle.items())
            raise InfrastructureError(
                f"waited {self.timeout:.0f} s to place {count} {what} of {wanted} each",
                where="cluster",
                remedy=f"the cluster has {resources()} on {len(ray.nodes())} nodes; ask for less",
            )
        return [replace(place, group=group, bundle=i) for i in range(count)]

    def get(self, ref: Any, what: str, *, timeout: float, check: Check = lambda: None) -> Any:
        """The value of `ref`, or an error that says what was waited for and what there is."""
        import ray

        self._wait(ref, what, timeout, check)
        with _actor_errors(what):
            return ray.get(ref, timeout=60)

    def stream(
        self, generator: Any, what: str, *, timeout: float, check: Check = lambda: None
    ) -> Iterator[Any]:
        """The values of a streaming generator; `timeout` is the longest silence, in seconds."""
        import ray

        while True:
            self._wait(generator, what, timeout, check)
            with _actor_errors(what):
                try:
                    ref = next(generator)
                except StopIteration:
                    return
                value = ray.get(ref, timeout=60)
            yield value

    def _wait(self, ref: Any, what: str, timeout: float, check: Check) -> None:
        import ray

        deadline = time.monotonic() + timeout
        while not ray.wait([ref], timeout=0.25)[0]:
            check()
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"waited {timeout:.0f} s for {what}",
                    where="cluster",
                    remedy=f"the cluster has {resources()}; ask for less or raise the time-out",
                )


def _refuse_client(address: str) -> None:
    """Ray's client cannot stream results out of an actor, nor see the files of this machine."""
    if address.startswith("ray://"):
        raise UsageError(
            f"cannot drive a run through Ray's client ({address})",
            where="cluster.address",
            remedy="run selfkd on a node of the cluster with cluster=auto, as by `ray job submit`",
        )


def _check_reachable(address: str) -> None:
    """Try the port first: Ray itself waits for minutes on an address that nobody answers."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InfrastructureError(
            f"nothing answers at Ray address {address} ({error.strerror or error})",
            where="cluster.address",
            remedy="start the cluster, or pass --local to run on this machine alone",
        ) from error


def resources() -> str:
    """What the cluster has and what is free, for messages."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    names = [n for n in ("CPU", "GPU") if n in total]
    return ", ".join(f"{free.get(n, 0):g} of {total[n]:g} {n} free" for n in names)


def kill(actor: Any) -> None:
    """End an actor's process at once; harmless if it is gone."""
    import ray
    from ray import exceptions

    with contextlib.suppress(ValueError, exceptions.RayError):
        ray.kill(actor, no_restart=True)


@contextlib.contextmanager
def _actor_errors(what: str) -> Iterator[None]:
    """Give errors of actors back as themselves: ours unwrapped, deaths as ActorLost."""
    from ray import exceptions

    try:
        yield
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from error
        raise
    except (exceptions.RayActorError, exceptions.ActorUnavailableError) as error:
        raise ActorLost(f"{what}: {str(error).splitlines()[0]}") from error
