"""The process of one judge: started by `judgepool`, it streams verdicts, and calls to be answered.

A judge that asks a language model runs in a thread, so that the process can show meanwhile that it
lives. What the run's own sampler is to answer goes to the driver in the stream, and comes back by
`answer`; a server is called from the judge's thread itself.
"""

import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.batches import Copies, Payload
from selfkd.errors import SelfkdError, UsageError
from selfkd.imports import spare_pandas
from selfkd.judgecalls import Call, Choices, Likelihoods, Reply, StopJudging, is_waiting, waiting
from selfkd.judgerun import JudgeRunner, Row, reason
from selfkd.judging import JudgeSpec

BEAT = 0.2
"""Seconds between the groups of verdicts that are sent back."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Calls of one kind that the driver is to have answered."""

    number: int
    requests: Sequence[Call] | Sequence[Choices]


class JudgeHost:
    """One judge, built once; a plain class that the pool starts as an actor."""

    def __init__(
        self,
        spec: str,
        options: Mapping[str, Any],
        identity: str,
        timeout: float,
        paths: Sequence[str],
        structured: bool = False,
        folder: str | None = None,
    ) -> None:
        """`identity` is the one that the run records; `timeout` in seconds for one sample of an
        async judge; `paths` to import modules from; `structured`: what the run's engine is;
        `folder`: where what a server said is kept for the run."""
        self._spec = JudgeSpec(spec, options)
        self._identity = identity
        self._timeout = timeout
        self._paths = paths
        self._caller = _Forwarder(structured, Path(folder) if folder else None)
        self._runner: JudgeRunner

    def start(self) -> None:
        """Import and build the judge; not done in the constructor so that its errors get out."""
        sys.path += [path for path in self._paths if path not in sys.path]
        spare_pandas()
        with _silence():
            if self._spec.identity() != self._identity:
                raise UsageError(
                    f"the judge {self._spec.name!r} is not the one that the run began with",
                    where=self._spec.plugin.source,
                    remedy="undo the change, or resume to be told what it affects",
                )
            self._spec.check_ready()
            try:
                self._runner = JudgeRunner(self._spec, caller=self._caller, timeout=self._timeout)
            except SelfkdError:
                raise
            except (Exception, SystemExit) as error:
                raise UsageError(
                    f"judge {self._spec.name!r} cannot be built: {reason(self._spec, error)}",
                    where=self._spec.plugin.source,
                    remedy="fix its constructor or its options",
                ) from error

    def judge(self, payload: Payload, kept: str | None = None) -> Iterator[list[Row] | Wanted]:
        """Judge samples; groups of verdicts come in any order, some of them empty.

        `kept` is the file where verdicts of judges inside this one are kept, if they may be.
        """
        self._caller.kept = Path(kept) if kept else None
        samples = Copies.read(payload)
        with _silence():
            try:
                if self._spec.calls:
                    yield from self._beside(samples)
                else:
                    yield from _groups(self._runner.rows(samples))
            except StopJudging as stop:
                raise stop.error from stop

    def answer(self, number: int, answers: list[Any] | Exception) -> None:
        """Hand in what was `Wanted`."""
        self._caller.hand_in(number, answers)

    def _beside(self, samples: Copies) -> Iterator[list[Row] | Wanted]:
        """Rows of a judge that runs in a thread, and its calls; silent only while it computes."""
        out: queue.SimpleQueue[list[Row] | Wanted | BaseException | None] = queue.SimpleQueue()
        self._caller.out = out

        def run() -> None:
            try:
                for rows in _groups(self._runner.rows(samples)):
                    out.put(rows)
                out.put(None)
            except BaseException as error:
                out.put(error)

        threading.Thread(target=run, daemon=True).start()
        while True:
            try:
                item = out.get(timeout=BEAT)
            except queue.Empty:
                if is_waiting():
                    yield []
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


class _Forwarder:
    """The caller of a judge in this process: passes calls on to the driver, and waits."""

    name = "the run's sampler"

    def __init__(self, structured: bool, folder: Path | None) -> None:
        self.structured = structured
        self.folder = folder
        self.kept: Path | None = None
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[list[Any]]] = {}

    def complete(self, calls: Sequence[Call]) -> list[Reply]:
        return self._ask(calls)

    def weigh(self, choices: Sequence[Choices]) -> list[Likelihoods]:
        return self._ask(choices)

    def _ask(self, requests: Sequence[Any]) -> list[Any]:
        if not requests:
            return []
        number = next(self._numbers)
        answered: Future[list[Any]] = Future()
        self._waiting[number] = answered
        self.out.put(Wanted(number, list(requests)))
        with waiting():
            return answered.result()

    def hand_in(self, number: int, answers: list[Any] | Exception) -> None:
        answered = self._waiting.pop(number)
        if isinstance(answers, Exception):
            answered.set_exception(answers)
        else:
            answered.set_result(answers)


def _groups(rows: Iterator[Row | None]) -> Iterator[list[Row]]:
    """Rows as they come, a list every `BEAT` seconds; None is only a sign of life."""
    group: list[Row] = []
    sent = time.monotonic()
    for row in rows:
        if row is not None:
            group.append(row)
        if time.monotonic() - sent > BEAT:
            yield group
            group, sent = [], time.monotonic()
    yield group


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what is printed to stdout meanwhile."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
