"""The driver's side of training: keeps the trainer's processes, and follows what they log."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfkd.cluster import ActorLost, Check, Cluster, Place, kill
from selfkd.errors import InfrastructureError, UsageError
from selfkd.hardware import cores
from selfkd.nodes import await_start
from selfkd.training.actor import LocalTrainer
from selfkd.training.base import LESS_MEMORY, TrainJob, TrainReport

LONGEST = 7 * 86_400
"""Seconds that a training may take."""
GRACE = 10.0
"""Seconds in which the death of one worker shows, once another has complained."""
SHARED = ("sft", "dpo")
"""Objectives whose loss is a sum over examples, so that several workers may each do a part."""


class Trainers:
    """One trainer, or several that share every batch; they live until `close`."""

    def __init__(
        self,
        cluster: Cluster,
        place: Place,
        *,
        workers: int,
        check: Check,
        actor: type = LocalTrainer,
    ) -> None:
        """`place` is what each worker reserves; `actor` a `Trainer`."""
        self._cluster = cluster
        self._place = place
        self._workers = workers
        self._check = check
        self._class = actor
        self._actors: list[Any] = []

    def start(self) -> None:
        """Start the processes, if they do not run."""
        if self._actors:
            return
        threads = max(1, cores() // self._workers)
        given = (threads,) if self._workers > 1 else ()
        self._actors = [
            self._cluster.start(self._class, *given, place=self._place, threads=threads)
            for _ in range(self._workers)
        ]
        try:
            for started in self._actors:
                await_start(started, "a trainer", self._place, self._get)
            if self._workers > 1:
                self._introduce()
        except BaseException:
            self.close()
            raise

    def _introduce(self) -> None:
        """Have the workers know of each other."""
        what = f"{self._workers} training workers to meet"
        meeting = self._get(self._actors[0].meeting_point.remote(), what)
        joining = [
            worker.join.remote(rank, self._workers, *meeting)
            for rank, worker in enumerate(self._actors)
        ]
        for joined in joining:
            self._get(joined, what)

    def train(self, job: TrainJob, follow: Callable[[dict[str, Any]], None]) -> TrainReport:
        """Run one training; `follow` sees each logged step.

        With several workers every one does its share of each batch, and the first one reports.
        """
        self._refuse(job)
        tail = _Tail(Path(job.log_file), follow)
        reports = self._call("train", job, what="the training", meanwhile=tail.read)
        return reports[0]

    def merge(self, adapter: Path, start: Path, out: Path) -> None:
        """As `policies.Merge`, in the first worker."""
        self._call("merge", *map(str, (adapter, start, out)), what="an adapter's merge", first=True)

    def close(self) -> None:
        """End the processes."""
        for actor in self._actors:
            kill(actor)
        self._actors = []

    def _refuse(self, job: TrainJob) -> None:
        if job.fsdp:
            self._refuse_fsdp(job)
        if self._workers == 1:
            return
        if job.objective not in SHARED:
            raise UsageError(
                f"a training of objective {job.objective} cannot be shared by workers",
                where="cluster.trainer_workers",
                remedy=f"set it to 1; {' and '.join(SHARED)} can be",
            )
        if job.options.batch_size % self._workers:
            raise UsageError(
                f"{self._workers} workers cannot share batches of {job.options.batch_size}",
                where="cluster.trainer_workers",
                remedy="let it divide train.batch_size",
            )

    def _refuse_fsdp(self, job: TrainJob) -> None:
        if job.objective == "sft" and not job.stretch:
            return
        cut = " that is cut by weight syncs" if job.stretch else ""
        raise UsageError(
            f"a training of objective {job.objective}{cut} cannot have its weights in parts",
            where="cluster.trainer_fsdp",
            remedy="set it to false",
        )

    def _call(
        self,
        method: str,
        *args: Any,
        what: str,
        first: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        def check() -> None:
            meanwhile()
            self._check()

        try:
            self.start()
            actors = self._actors[:1] if first else self._actors
            refs = [getattr(actor, method).remote(*args) for actor in actors]
            return self._values(refs, what, check)
        except ActorLost as error:
            self.close()
            raise InfrastructureError(
                f"the trainer's process was killed, likely for lack of memory ({error.message})",
                where="train",
                remedy=LESS_MEMORY,
            ) from error
        except BaseException:
            if self._workers > 1:
                self.close()  # the others wait for the one that failed
            raise

    def _values(self, refs: list[Any], what: str, check: Check) -> list[Any]:
        """What the workers answer; ActorLost where one died, whoever is the first to say so."""
        try:
            return self._cluster.get_all(refs, what, timeout=LONGEST, check=check)
        except InfrastructureError as error:
            # Where one died, another may be the first to complain: it lost its connection.
            deadline = time.monotonic() + GRACE
            for ref in refs:
                try:
                    self._cluster.get(ref, what, timeout=deadline - time.monotonic())
                except ActorLost as lost:
                    raise lost from error
                except Exception:  # of one that lives
                    continue
            raise

    def _get(self, ref: Any, what: str) -> Any:
        return self._cluster.get(ref, what, timeout=self._cluster.timeout, check=self._check)


class _Tail:
    """Follows a JSON-lines file that another process appends to."""

    def __init__(self, path: Path, follow: Callable[[dict[str, Any]], None]) -> None:
        self._path = path
        self._follow = follow
        self._offset = 0

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._follow(json.loads(line))
