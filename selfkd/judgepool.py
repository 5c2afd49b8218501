"""The driver's side of judging: keeps judge processes alive and busy, and verdicts in order.

What a judge can do to its process (block it, exit, crash) costs a verdict to the one sample that
it happened on. To find that sample, what the lost process still owed is judged again one by one.
"""

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfkd.batches import Batch, Said
from selfkd.cluster import ANYWHERE, ActorLost, Check, Cluster, ClusterLost, Place, kill
from selfkd.enginecalls import EngineCalls
from selfkd.errors import InfrastructureError, Stopped, UsageError
from selfkd.hardware import cores
from selfkd.judgehost import JudgeHost, Wanted
from selfkd.judgerun import Row, call_size
from selfkd.judging import JudgeSpec
from selfkd.nodes import await_start
from selfkd.records import VERDICTS, Status, Verdict, rows_table
from selfkd.stopping import Patient
from selfkd.verdictcache import Store, VerdictCache

Hear = Callable[[Sequence[tuple[int, Said]]], None]
"""Takes what is said of samples as it comes, each with its place in the batch."""

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
        self,
        judge: JudgeSpec,
        cluster: Cluster,
        *,
        workers: int,
        timeout: float,
        check: Check,
        folder: Path | None = None,
        place: Place = ANYWHERE,
    ) -> None:
        """`timeout` is the longest silence for one sample, or one call of a class or TRL judge,
        in seconds; a call that is too slow is made again sample by sample. `folder` keeps what
        servers answer, so that it is not paid for again. `place` is what each process reserves."""
        self._name = judge.name
        self._count = workers
        self._check = check
        self._workers = [
            _Worker(judge, cluster, workers, timeout, folder, place) for _ in range(workers)
        ]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # the warm one first
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")

    def judge_batches(
        self,
        batches: Iterator[Batch],
        calls: EngineCalls | None = None,
        cache: VerdictCache | None = None,
        kept: Path | None = None,
        again: str = "",
    ) -> Iterator[pa.Table]:
        """Verdicts of each batch as rows of `VERDICTS`, in order.

        At most `workers + 1` batches are under way. `calls` answers what the judge asks the run's
        sampler. What `cache` knows is not judged; `kept` is the file of what is known of judges
        inside this one. `again` names an occasion on which samples are judged once more: what a
        server said of them before does not count.
        """
        pending: deque[Future[pa.Table]] = deque()
        cancelled = threading.Event()
        check = Patient(self._check)
        try:
            for batch in batches:
                # What the run's own sampler says is recorded by sample, and never read back.
                shown = batch.renamed(f"@{again}") if again and not calls else batch
                pending.append(
                    self._threads.submit(self._judge, batch, shown, cancelled, calls, cache, kept)
                )
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
            if cache:
                cache.close()

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def _judge(
        self,
        batch: Batch,
        shown: Batch,
        cancelled: threading.Event,
        calls: EngineCalls | None,
        cache: VerdictCache | None,
        kept: Path | None,
    ) -> pa.Table:
        def check() -> None:
            if cancelled.is_set():
                raise _Cancelled

        def ask(asked: Batch, hear: Hear) -> list[Said]:
            worker = self._idle.get()
            try:
                return worker.judge(asked, check, calls, hear, kept)
            finally:
                self._idle.put(worker)

        check()
        if cache:
            return rows_table(self._cached(batch, shown, cache, ask), VERDICTS)
        return batch.verdicts(self._name, ask(shown, lambda group: None))

    def _cached(
        self, batch: Batch, shown: Batch, cache: VerdictCache, ask: Callable[..., list[Said]]
    ) -> list[Verdict]:
        """The verdicts, only those asked for that are not known."""

        def verdict(place: int, said: Said) -> Verdict:
            sample = batch.samples[place]
            return Verdict(sample.id, sample.prompt.id, self._name, *said)  # type: ignore[arg-type]

        def owed(places: list[int], store: Store) -> list[Verdict]:
            said = ask(
                shown.take(places),
                lambda group: store([(i, verdict(places[i], said)) for i, said in group]),
            )
            return [verdict(*item) for item in zip(places, said, strict=True)]

        return cache.serve(batch.samples, owed)

    def _result(self, future: Future[pa.Table], check: Check) -> pa.Table:
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

    def __init__(
        self,
        judge: JudgeSpec,
        cluster: Cluster,
        workers: int,
        timeout: float,
        folder: Path | None,
        place: Place,
    ) -> None:
        self._judge = judge
        self._folder = str(folder) if folder else None
        self._cluster = cluster
        self._place = place
        self._threads = max(1, cores() // workers)
        self._timeout = timeout
        self._actor: Any = None
        self._losses = 0

    def judge(
        self, batch: Batch, check: Check, calls: EngineCalls | None, hear: Hear, kept: Path | None
    ) -> list[Said]:
        """What is said of each sample, in order, whatever the judge does to its process; `hear` is
        told as it comes."""
        found: dict[int, Said] = {}
        alone, blamed = 0, False  # how many to judge one by one; whether one was at fault
        while owed := [i for i in range(len(batch)) if i not in found]:
            part = self._alone(owed, batch) if alone else owed
            try:
                for rows in self._rows(batch.take(part), check, calls, kept):
                    group: list[tuple[int, Said]] = [(part[row[0]], row[1:]) for row in rows]
                    hear(group)
                    found |= group
                    self._losses = 0
            except _Lost as lost:
                if alone:
                    found |= self._give_up(part, batch, lost)
                    blamed = True
                else:
                    alone, blamed = self._suspects(owed), False
            else:
                alone = 0 if blamed else max(0, alone - len(part))
        return [found[i] for i in range(len(batch))]

    def stop(self) -> None:
        """End the process."""
        if self._actor is not None:
            kill(self._actor)
        self._actor = None

    def _suspects(self, owed: Sequence[int]) -> int:
        """How many of the owed samples the process may have been lost on."""
        one_call = self._judge.plugin.kind in ("class", "trl")
        return min(call_size(self._judge), len(owed)) if one_call else len(owed)

    def _alone(self, owed: Sequence[int], batch: Batch) -> list[int]:
        """The first owed sample, with the others of its prompt where the judge compares them."""
        if not self._judge.compares:
            return [owed[0]]
        prompt = batch.prompts[owed[0]].id
        return [i for i in owed if batch.prompts[i].id == prompt]

    def _rows(
        self, batch: Batch, check: Check, calls: EngineCalls | None, kept: Path | None
    ) -> Iterator[list[Row]]:
        """What the process says of the samples, in groups; _Lost if it is lost meanwhile."""
        self._start(check, calls)
        file = str(kept) if kept else None
        stream = self._actor.judge.options(num_returns="streaming").remote(batch.payload(), file)
        what, silence = f"judge {self._judge.name}", self._timeout + GRACE
        try:
            for item in self._cluster.stream(stream, what, timeout=silence, check=check):
                if isinstance(item, Wanted):
                    self._answer(item, check, calls)
                else:
                    yield item
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

    def _answer(self, wanted: Wanted, check: Check, calls: EngineCalls | None) -> None:
        if calls is None:
            raise UsageError(
                f"judge {self._judge.name!r} asks the run's sampler, and there is none here",
                where=self._judge.plugin.source,
                remedy="name the model that is to answer: --model NAME",
            )
        answers = calls.answer(wanted.requests, check)
        self._actor.answer.remote(wanted.number, answers)

    def _start(self, check: Check, calls: EngineCalls | None) -> None:
        for attempt in range(STARTS if self._actor is None else 0):
            try:
                self._try_start(check, calls)
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

    def _try_start(self, check: Check, calls: EngineCalls | None) -> None:
        paths = [str(Path(path).resolve()) for path in sys.path]
        spec, options = self._judge.spec, dict(self._judge.options)
        identity = self._judge.identity()
        structured = calls is not None and calls.structured()
        self._actor = self._cluster.start(
            JudgeHost,
            spec,
            options,
            identity,
            self._timeout,
            paths,
            structured,
            self._folder,
            place=self._place,
            threads=self._threads,
            concurrency=2 if self._judge.calls else 1,  # one to judge, one to be answered
        )

        def get(ref: Any, what: str, timeout: float = self._cluster.timeout) -> Any:
            return self._cluster.get(ref, what, timeout=timeout, check=check)

        what = f"judge {self._judge.name}"
        try:
            await_start(self._actor, what, self._place, get)
            get(self._actor.start.remote(), f"{what} to be ready", START_TIMEOUT)
        except BaseException:
            self.stop()
            raise

    def _give_up(self, part: Sequence[int], batch: Batch, lost: _Lost) -> dict[int, Said]:
        self._losses += 1
        found: dict[int, Said] = {}
        for i in part:
            why = f"judge {self._judge.name}, sample {batch.ids[i]}: {lost.why}"
            found[i] = None, lost.status, None, why, 0.0
        if self._losses > LOSSES:
            raise InfrastructureError(
                f"the judge lost its process on {self._losses} samples in a row; the last: "
                f"{found[part[-1]][3]}",
                where=self._judge.plugin.source,
                remedy="run it alone with `selfkd judge test`, or raise judging.timeout",
            )
        return found
