"""The driver's side of judging: keeps judge processes alive and busy, and verdicts in order.

What a judge can do to its process (block it, exit, crash) costs a verdict to the one sample that
it happened on. To find that sample, what the lost process still owed is judged again one by one.
"""

import pickle
import queue
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from selfkd.cluster import ActorLost, Check, Cluster, ClusterLost, kill
from selfkd.errors import InfrastructureError, Stopped
from selfkd.hardware import cores
from selfkd.judgehost import CALL, JudgeHost, Row
from selfkd.judging import JudgeSpec
from selfkd.records import Sample, Status, Verdict
from selfkd.stopping import Patient

GRACE = 1.0
"""Seconds of silence allowed beyond the time-out of a sample: verdicts travel in groups."""
START_TIMEOUT = 600.0
"""Longest start of a judge, seconds: it may have a model to load."""
STARTS = 3
"""Failed starts in a row before the run gives up."""
LOSSES = 16
"""Samples in a row that may cost the judge its process before the run gives up. More than one
prompt's samples usually are: a reference answer that crashes the judge crashes it for all."""


class JudgePool:
    """Judge processes of one judge, started when there is something to judge."""

    def __init__(
        self, judge: JudgeSpec, cluster: Cluster, *, workers: int, timeout: float, check: Check
    ) -> None:
        """`timeout` is the longest silence for one sample, or one call of a class or TRL judge,
        in seconds; a call that is too slow is made again sample by sample."""
        self._count = workers
        self._check = check
        self._workers = [_Worker(judge, cluster, workers, timeout) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # the warm one first
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")

    def judge_batches(self, batches: Iterator[list[Sample]]) -> Iterator[list[Verdict]]:
        """Verdicts of each batch, in order; at most `workers + 1` batches are under way."""
        pending: deque[Future[list[Verdict]]] = deque()
        cancelled = threading.Event()
        check = Patient(self._check)
        try:
            for batch in batches:
                payload = [pickle.dumps(sample) for sample in batch]
                pending.append(self._threads.submit(self._judge, batch, payload, cancelled))
                while pending and (len(pending) > self._count or pending[0].done()):
                    yield self._result(pending.popleft(), check)
                self._check()
            while pending:
                yield self._result(pending.popleft(), check)
        except Stopped:
            while pending:  # judged and maybe paid for
                yield self._result(pending.popleft(), check)
            raise
        finally:
            cancelled.set()
            wait(pending)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def _judge(
        self, batch: list[Sample], payload: list[bytes], cancelled: threading.Event
    ) -> list[Verdict]:
        def check() -> None:
            if cancelled.is_set():
                raise _Cancelled

        check()
        worker = self._idle.get()
        try:
            return worker.judge(batch, payload, check)
        finally:
            self._idle.put(worker)

    def _result(self, future: Future[list[Verdict]], check: Check) -> list[Verdict]:
        while not wait([future], timeout=0.25).done:
            check()
        return future.result()


class _Cancelled(Exception):
    """Nobody waits for the verdicts any more."""


class _Lost(Exception):
    """The judge's process ended (`error`) or fell silent (`timeout`)."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status: Status = status
        self.why = why


class _Worker:
    """One judge process at a time, replaced when it is lost."""

    def __init__(self, judge: JudgeSpec, cluster: Cluster, workers: int, timeout: float) -> None:
        self._judge = judge
        self._cluster = cluster
        self._threads = max(1, cores() // workers)
        self._timeout = timeout
        self._actor: Any = None
        self._losses = 0

    def judge(
        self, samples: Sequence[Sample], payload: Sequence[bytes], check: Check
    ) -> list[Verdict]:
        """A verdict for each sample, in order, whatever the judge does to its process."""
        found: dict[int, Verdict] = {}
        alone, blamed = 0, False  # how many to judge one by one; whether one was at fault
        while owed := [i for i in range(len(samples)) if i not in found]:
            part = owed[:1] if alone else owed
            try:
                for position, *fields in self._rows([payload[i] for i in part], check):
                    found[part[position]] = self._verdict(samples[part[position]], *fields)
                    self._losses = 0
            except _Lost as lost:
                if alone:
                    found[owed[0]], blamed = self._give_up(samples[owed[0]], lost), True
                else:
                    alone, blamed = self._suspects(owed), False
            else:
                alone = 0 if blamed else max(0, alone - 1)
        return [found[i] for i in range(len(samples))]

    def stop(self) -> None:
        """End the process."""
        if self._actor is not None:
            kill(self._actor)
        self._actor = None

    def _suspects(self, owed: Sequence[int]) -> int:
        """How many of the owed samples the process may have been lost on."""
        one_call = self._judge.plugin.kind in ("class", "trl")
        return min(CALL, len(owed)) if one_call else len(owed)

    def _rows(self, payload: Sequence[bytes], check: Check) -> Iterator[Row]:
        """What the process says of the pickled samples; _Lost if it is lost meanwhile."""
        self._start(check)
        stream = self._actor.judge.options(num_returns="streaming").remote(payload)
        what, silence = f"judge {self._judge.name}", self._timeout + GRACE
        try:
            for rows in self._cluster.stream(stream, what, timeout=silence, check=check):
                yield from rows
        except ActorLost as error:
            self.stop()
            raise _Lost("error", "it ended its process (an exit, a crash or no memory)") from error
        except ClusterLost:
            self.stop()
            raise
        except InfrastructureError as error:
            self.stop()
            raise _Lost("timeout", f"no verdict within {self._timeout:g} s") from error
        except BaseException:
            self.stop()
            raise

    def _start(self, check: Check) -> None:
        for attempt in range(STARTS if self._actor is None else 0):
            try:
                self._try_start(check)
                return
            except ActorLost as error:
                self.stop()
                if attempt == STARTS - 1:
                    reason = str(error.__cause__ or error).strip().splitlines()[-1]
                    raise InfrastructureError(
                        f"the process of judge {self._judge.name!r} died {STARTS} times while "
                        f"starting ({reason})",
                        where=self._judge.plugin.source,
                        remedy="run it alone with `selfkd judge test`, or free memory",
                    ) from error

    def _try_start(self, check: Check) -> None:
        paths = [str(Path(path).resolve()) for path in sys.path]
        spec, options = self._judge.spec, dict(self._judge.options)
        identity = self._judge.identity()
        self._actor = self._cluster.start(
            JudgeHost, spec, options, identity, self._timeout, paths, threads=self._threads
        )
        try:
            what = f"judge {self._judge.name} to start"
            self._cluster.get(self._actor.start.remote(), what, timeout=START_TIMEOUT, check=check)
        except BaseException:
            self.stop()
            raise

    def _give_up(self, sample: Sample, lost: _Lost) -> Verdict:
        self._losses += 1
        why = f"judge {self._judge.name}, sample {sample.id}: {lost.why}"
        if self._losses > LOSSES:
            raise InfrastructureError(
                f"the judge lost its process on {self._losses} samples in a row; the last: {why}",
                where=self._judge.plugin.source,
                remedy="run it alone with `selfkd judge test`, or raise judging.timeout",
            )
        return self._verdict(sample, None, lost.status, None, why, 0.0)

    def _verdict(self, sample: Sample, *fields: Any) -> Verdict:
        return Verdict(sample.id, sample.prompt.id, self._judge.name, *fields)
