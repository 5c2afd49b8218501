"""Ray: start or join a cluster, start actors, and wait for them without ever waiting silently."""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfkd.errors import InfrastructureError
from selfkd.hardware import available_gib, cores, memory_gib
from selfkd.joining import approach, check_reachable
from selfkd.starting import place_for_ray, starting


@dataclass(frozen=True, slots=True)
class Place:
    """What a process reserves of the cluster, and where."""

    gpus: float = 0
    cpus: float = 0
    """None by default: sampler and trainer take turns, and each gets every core."""
    group: Any = None
    """A Ray placement group, one of whose bundles the process goes to."""
    bundle: int = 0

    @property
    def bundles(self) -> dict[str, float]:
        """What is reserved, as Ray names it."""
        return {name: n for name, n in (("CPU", self.cpus), ("GPU", self.gpus)) if n}

    def __str__(self) -> str:
        return " and ".join(f"{n:g} {name}" for name, n in self.bundles.items())


ANYWHERE = Place()

Check = Callable[[], None]
"""Called while waiting; raises to give up (a stop was asked for)."""

Get = Callable[[Any, str], Any]
"""Waits for an answer of an actor; the text says what is waited for."""

LARGE_BLOCKS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
"""Has glibc keep what an actor frees, until `hardware.FreedMemory`. By itself it maps a block of
more than 32 MiB anew and gives it back at once: logits, or the gradient of an output head, come as
pages to be cleared one by one, in each forward pass and each step. Other C libraries ignore it."""
PATIENCE = 30.0
"""Seconds that a joined cluster may be out of reach; Ray ends the process after 60."""
HANDOVER = 60.0
"""Seconds that a value may take to get here once it is there."""
GOODBYE = 10.0
"""Seconds that leaving a cluster may take, which one that is gone never answers."""


class ActorLost(InfrastructureError):
    """An actor's process ended under a call."""


class ClusterLost(InfrastructureError):
    """The cluster itself is gone: nothing on it can be waited for or started again."""


class Cluster:
    """A started or joined Ray cluster; closing it ends every process that it started."""

    def __init__(self, address: str, *, timeout: float) -> None:
        """`address` is `local`, `auto` or `host:port`; `timeout` in seconds for placement."""
        self.address = address
        self.timeout = timeout
        self._answered = time.monotonic()
        self._lost = False

    def __enter__(self) -> "Cluster":
        # Ray reads these while it starts; a laptop run reports nothing and colours nothing.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray gives its workers niceness 15: any other program on the machine would starve a run.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # A busy machine takes longer than Ray's own 30 s to start a node.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
        # Ray starts a worker a core ahead, which no actor takes that has an environment of its own.
        os.environ.setdefault("RAY_enable_worker_prestart", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        import ray

        # Its warnings are about itself (token authentication is on); errors are raised.
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {"namespace": f"selfkd-{os.getpid()}", "log_to_driver": False}
        if self.address == "local":
            options |= {"address": "local", "num_cpus": cores(), "include_dashboard": False}
            options |= {"object_store_memory": 256 * 2**20, "_temp_dir": str(place_for_ray())}
        else:
            options["address"] = self.address
            approach(self.address)
        try:
            with starting():
                ray.init(**options, logging_level=logging.ERROR, configure_logging=False)
        except Exception as error:  # some of Ray's are bare exceptions
            raise self._no_start(str(error).strip().partition("\n")[0]) from error
        return self

    def _no_start(self, reason: str) -> InfrastructureError:
        if self.address == "local":
            return InfrastructureError(
                f"Ray does not start on this machine: {reason}",
                where="cluster",
                remedy="see `selfkd doctor`, and what else keeps this machine busy",
            )
        return InfrastructureError(
            f"cannot reach a Ray cluster at {self.address!r}: {reason}",
            where="cluster.address",
            remedy="pass --local to run on this machine alone",
        )

    def __exit__(self, *error: object) -> None:
        import ray

        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        if self._lost or _ended_here():
            leaving.start()
            leaving.join(GOODBYE)
        else:
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

        self._check_gpus(cls, place.gpus)
        environment = {
            "OMP_NUM_THREADS": str(threads or cores()),
            "TOKENIZERS_PARALLELISM": "false",
            **LARGE_BLOCKS,
        }
        remote = ray.remote(cls).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place.group, place.bundle)
            if place.group
            else "DEFAULT",
            max_restarts=0,
            max_concurrency=concurrency,  # where it is 1, methods run in the main thread
            # Read before the process runs: the C library looks at its settings only then.
            runtime_env={"env_vars": environment},
        )
        return remote.remote(*args)

    def reserve(self, place: Place, count: int, what: str) -> list[Place]:
        """Reserve `place` that many times, all or none, on as many nodes as possible.

        InfrastructureError where they do not fit into the cluster within its time-out.
        """
        import ray
        from ray.util import placement_group, remove_placement_group

        group = placement_group([place.bundles] * count, strategy="SPREAD")
        if not group.wait(self.timeout):
            remove_placement_group(group)
            raise InfrastructureError(
                f"waited {self.timeout:.0f} s to place {count} {what} of {place} each",
                where="cluster",
                remedy=f"the cluster has {resources()} on {len(ray.nodes())} nodes; ask for less",
            )
        return [replace(place, group=group, bundle=i) for i in range(count)]

    def _check_gpus(self, cls: type, gpus: float) -> None:
        """Refuse what will never be placed; a cluster that was joined may still grow."""
        import ray

        total = ray.cluster_resources().get("GPU", 0) if gpus and self.address == "local" else gpus
        if gpus > total:
            raise InfrastructureError(
                f"{cls.__name__} wants {gpus:g} GPU, and this machine has {total:g}",
                where="cluster",
                remedy="lower cluster.sampler_gpus or cluster.trainer_gpus",
            )

    def get(self, ref: Any, what: str, *, timeout: float, check: Check = lambda: None) -> Any:
        """The value of `ref`, or an error that says what was waited for and what there is."""
        return self.get_all([ref], what, timeout=timeout, check=check)[0]

    def get_all(
        self, refs: Sequence[Any], what: str, *, timeout: float, check: Check = lambda: None
    ) -> list[Any]:
        """As `get`, of several; what one of them fails with is raised as soon as it shows."""
        import ray

        found: dict[Any, Any] = {}
        while left := [ref for ref in refs if ref not in found]:
            ready = self._wait(left, what, timeout, check)
            with _actor_errors(what):
                found[ready] = ray.get(ready, timeout=HANDOVER)
        return [found[ref] for ref in refs]

    def stream(
        self, generator: Any, what: str, *, timeout: float, check: Check = lambda: None
    ) -> Iterator[Any]:
        """The values of a streaming generator; `timeout` is the longest silence, in seconds."""
        import ray

        while True:
            check()  # also where the next value is always there in time
            self._wait([generator], what, timeout, check)
            with _actor_errors(what):
                try:
                    ref = next(generator)
                except StopIteration:
                    return
                value = ray.get(ref, timeout=HANDOVER)
            yield value

    def _wait(self, refs: list[Any], what: str, timeout: float, check: Check) -> Any:
        """The first of `refs` that is there, or has failed."""
        import ray

        deadline = time.monotonic() + timeout
        while not (ready := ray.wait(refs, timeout=0.25)[0]):
            check()
            self._check_alive()
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"waited {timeout:.0f} s for {what}",
                    where="cluster",
                    remedy=f"the cluster has {resources()}; ask for less or raise the time-out",
                )
        return ready[0]

    def _check_alive(self) -> None:
        """Raise ClusterLost where Ray would wait in vain, or abort this process in a minute."""
        import ray

        _check_node()
        now = time.monotonic()
        if self.address == "local" or now - self._answered < PATIENCE / 3:
            return
        address = ray.get_runtime_context().gcs_address
        try:
            check_reachable(address, seconds=PATIENCE / 3)
            self._answered = time.monotonic()
        except InfrastructureError as error:
            if now - self._answered > PATIENCE:
                self._lost = True
                raise ClusterLost(
                    f"the Ray cluster at {address} has not answered for {PATIENCE:.0f} s",
                    where="cluster",
                    remedy="see that it is up and reachable, then resume",
                ) from error


def _check_node() -> None:
    """Raise ClusterLost where what Ray runs for this process itself has ended."""
    if ended := _ended_here():
        raise ClusterLost(
            f"Ray's {ended} on this machine ended (killed, or out of memory)",
            where="cluster",
            remedy="see that there is memory to spare, then resume",
        )


def _ended_here() -> str:
    """Which of Ray's own processes that this one started has ended, if one has."""
    from ray._private import worker

    node: Any = worker._global_node
    dead = {str(kind) for kind, _ in node.dead_processes()} if node else set()
    return next((name for name in ("raylet", "gcs_server") if name in dead), "")


def resources() -> str:
    """What the cluster has and what is free, for messages."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    names = [n for n in ("CPU", "GPU") if n in total]
    parts = [f"{free.get(n, 0):g} of {total[n]:g} {n} free" for n in names]
    memory = f"{available_gib():.1f} of {memory_gib():.1f} GiB of memory free on this machine"
    return ", ".join([*parts, memory])


def kill(actor: Any) -> None:
    """End an actor's process at once; harmless if it is gone."""
    import ray
    from ray import exceptions

    if not ray.is_initialized() or _ended_here():
        return  # its processes end by themselves, and nobody is there to ask
    with contextlib.suppress(ValueError, exceptions.RayError):
        ray.kill(actor, no_restart=True)


def _reason(error: Exception) -> str:
    """Why an actor ended, in a line: the error of its constructor, or the end of its log."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "creation task" in lines[0]:
        return lines[-1]
    pid = next((line.split()[1] for line in lines if line.strip().startswith("pid:")), "")
    words = _last_words(pid) if pid else ""
    return f"{lines[0]} Its log ends: {words}" if words else lines[0]


def _last_words(pid: str, lines: int = 3) -> str:
    """The end of what a process of this machine wrote to stderr."""
    from ray._private import worker

    node = worker._global_node
    logs = Path(node.get_logs_dir_path()).glob(f"worker-*-{pid}.err") if node else []
    text = "\n".join(log.read_text(errors="replace") for log in logs)
    text = re.split(r"^.*(?:\*\*\* SIG|Fatal Python error)", text, maxsplit=1, flags=re.MULTILINE)[
        0
    ]
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


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
    except (
        exceptions.RayActorError,
        exceptions.ActorUnavailableError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
    ) as error:
        _check_node()
        raise ActorLost(f"{what}: {_reason(error)}") from error
    except exceptions.GetTimeoutError as error:
        raise InfrastructureError(
            f"{what}: it is there, and was not handed over within {HANDOVER:.0f} s",
            where="cluster",
            remedy=f"the cluster has {resources()}; see its network and its disks, then resume",
        ) from error
