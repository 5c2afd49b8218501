"""Runs a judge of any kind: foreign code, held to one verdict or one reason per sample.

Whatever the judge does with one sample (raise, return nonsense, change its input) stays with that
sample. What ends or blocks the process itself is left to `judgehost` and `judgepool`.
"""

import asyncio
import inspect
import itertools
import math
import numbers
import os
import reprlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from selfkd.batches import Copies
from selfkd.judgecalls import REFUSAL, Caller, StopJudging
from selfkd.judging import JudgeSpec
from selfkd.records import Sample, Status, Verdict

CALL = 32
"""Most samples in one call of a class or TRL judge, unless a single prompt has more."""
LONG_CALL = 256
"""The same of a judge that asks a language model: a batch is cheaper the larger it is."""
CONCURRENCY = 32
"""Samples that an async judge works on at once."""
BEAT = 0.2
"""Seconds between signs of life of an async judge."""
RATIONALE = 20_000
"""Longest rationale kept, in characters."""

Row = tuple[int, float | None, str, str | None, str, float]
"""Position in the batch, then reward, status, answer, rationale and cost of a verdict."""

_EXTRAS: dict[str, Any] = {
    "trainer_state": None,
    "log_extra": lambda *args, **kwargs: None,
    "log_metric": lambda *args, **kwargs: None,
}
"""What TRL passes besides columns; given only to functions that cannot do without."""


class JudgeRunner:
    """One judge, built once, and its verdicts as rows."""

    def __init__(
        self, spec: JudgeSpec, *, caller: Caller | None = None, timeout: float = float("inf")
    ) -> None:
        """`timeout` in seconds for one sample of an async judge. Building may raise anything."""
        self._spec = spec
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._target: Any = spec.build(caller)

    def rows(self, samples: Copies) -> Iterator[Row | None]:
        """A row for each sample, in any order; None is only a sign of life.

        Raises only `StopJudging`.
        """
        ways = {"function": self._one_by_one, "async": self._at_once}
        return ways.get(self._spec.plugin.kind, self._by_calls)(samples)

    # -- functions --------------------------------------------------------------------------------

    def _one_by_one(self, samples: Copies) -> Iterator[Row | None]:
        for position, sample in enumerate(samples):
            yield self._row(position, sample, lambda: self._target(sample))  # noqa: B023

    # -- async functions --------------------------------------------------------------------------

    def _at_once(self, samples: Copies) -> Iterator[Row | None]:
        waiting = enumerate(samples)
        running: dict[asyncio.Task[Row], tuple[int, Sample, float]] = {}
        while True:
            while len(running) < CONCURRENCY and (item := next(waiting, None)):
                position, sample = item
                task = self._loop.create_task(self._awaited(position, sample))
                running[task] = (position, sample, time.monotonic() + self._timeout)
            if not running:
                return
            done, _ = self._loop.run_until_complete(
                asyncio.wait(running, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
            )
            for task in done:
                del running[task]
                yield task.result()
            yield from self._overdue(running)
            yield None

    def _overdue(
        self, running: dict[asyncio.Task[Row], tuple[int, Sample, float]]
    ) -> Iterator[Row]:
        for task, (position, sample, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                # Cancelled but not waited for: the judge may ignore it.
                task.cancel()
                del running[task]
                why = f"no verdict within {self._timeout:g} s"
                yield (position, None, "timeout", None, self._says(sample, why), 0.0)

    async def _awaited(self, position: int, sample: Sample) -> Row:
        try:
            value = await self._target(sample)
        except StopJudging:
            raise
        except BaseException as error:
            return self._failure(position, sample, error)
        return self._row(position, sample, lambda: value)

    # -- classes and TRL reward functions ---------------------------------------------------------

    def _by_calls(self, samples: Copies) -> Iterator[Row | None]:
        for call in _calls(samples, call_size(self._spec)):
            yield from self._call(samples, call)
            yield None

    def _call(self, batch: Copies, positions: Sequence[int]) -> Iterator[Row]:
        """One call; if it fails as a whole, one call a sample, to find whose fault it is.

        A judge that compares has one call a prompt instead: a sample alone would win or lose.
        """
        samples = [batch[i] for i in positions]
        try:
            values = self._values(samples)
        except StopJudging:
            raise
        except BaseException as error:
            by_prompt = self._spec.compares
            parts = list(_prompts(batch, positions)) if by_prompt else [[i] for i in positions]
            if len(parts) > 1:
                for part in parts:
                    yield from self._call(batch, part)
            else:
                for position, sample in zip(positions, samples, strict=True):
                    yield self._failure(position, sample, error)
            return
        for position, sample, value in zip(positions, samples, values, strict=True):
            yield self._row(position, sample, lambda: value)  # noqa: B023

    def _values(self, samples: list[Sample]) -> list[Any]:
        is_class = self._spec.plugin.kind == "class"
        values = self._target.judge(samples) if is_class else self._target(**self._columns(samples))
        if inspect.isawaitable(values):
            values = self._loop.run_until_complete(values)
        if hasattr(values, "tolist"):  # numpy and torch
            values = values.tolist()
        if not isinstance(values, list | tuple | Iterator):
            raise TypeError(f"returned a {type(values).__name__}, not a list of verdicts")
        values = list(values)
        if len(values) != len(samples):
            raise ValueError(f"returned {len(values)} verdicts for {len(samples)} samples")
        return values

    def _columns(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What TRL would pass: conversations, token ids and every column of the prompts."""
        names = {name for sample in samples for name in sample.columns}
        given = {name: [s.columns.get(name) for s in samples] for name in names}
        answers = [s.answer for s in samples]
        given.setdefault("solution", answers)  # TRL's own name for it
        given |= {
            "answer": answers,
            "prompts": [list(s.prompt.messages) for s in samples],
            "completions": [[{"role": "assistant", "content": s.completion}] for s in samples],
            "completion_ids": [list(s.tokens) for s in samples],
        }
        for name in self._spec.arguments():
            given.pop(name, None)
        return _accepted(inspect.signature(self._target), given)

    # -- verdicts ---------------------------------------------------------------------------------

    def _row(self, position: int, sample: Sample, judged: Callable[[], Any]) -> Row:
        try:
            return (position, *_checked(sample, judged()))
        except StopJudging:
            raise
        except BaseException as error:
            return self._failure(position, sample, error)

    def _failure(self, position: int, sample: Sample, error: BaseException) -> Row:
        return (position, None, "error", None, self._says(sample, reason(self._spec, error)), 0.0)

    def _says(self, sample: Sample, why: str) -> str:
        return f"judge {self._spec.name}, sample {sample.id}: {why}"


def reason(spec: JudgeSpec, error: BaseException) -> str:
    """First line of an error, and the line of the judge's file that it came from."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    source = spec.plugin.source
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == source]
    return f"{text} ({os.path.basename(source)}:{lines[-1]})" if lines else text


def call_size(spec: JudgeSpec) -> int:
    """Most samples in one call of a judge that takes several."""
    return LONG_CALL if spec.calls else CALL


def _checked(sample: Sample, value: Any) -> tuple[float | None, str, str | None, str, float]:
    """The fields of a verdict, from whatever a judge returned for `sample`."""
    if value is None:
        return None, "abstained", None, "", 0.0
    if not isinstance(value, Verdict):
        return _finite(value, "reward"), "ok", None, "", 0.0
    if value.sample_id != sample.id:
        raise ValueError(f"the verdict is of another sample, {value.sample_id}")
    if value.status not in get_args(Status):
        raise ValueError(f"the status {value.status!r} is none of {', '.join(get_args(Status))}")
    reward = None if value.reward is None else _finite(value.reward, "reward")
    status: str = value.status
    if reward is None and status == "ok":
        status = "abstained"
    if reward is not None and status != "ok":
        raise ValueError(f"a verdict is {status} or has a reward ({reward:g}), not both")
    answer = None if value.answer is None else str(value.answer)
    cost, rationale = _finite(value.cost_usd, "cost_usd"), str(value.rationale)[:RATIONALE]
    if status == "error" and rationale.startswith(REFUSAL):
        status = "refused"  # counted apart: it is not the judge that broke
    return reward, status, answer, rationale, cost


def _finite(value: Any, what: str) -> float:
    if not isinstance(value, int | float) and hasattr(value, "item"):
        value = value.item()  # numpy and torch scalars
    if not isinstance(value, int | float | numbers.Real):
        text = reprlib.repr(value)
        raise TypeError(f"the {what} is {text}, a {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the {what} is {number}, not a finite number")
    return number


def _accepted(signature: inspect.Signature, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the given arguments that a TRL reward function takes; ValueError if it lacks one."""
    parameters = signature.parameters.values()
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    given = {name: _EXTRAS[name] for name in required if name in _EXTRAS} | given
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"it asks for {', '.join(missing)}, which the prompts have no column for")
    names = {p.name for p in named}
    return given if takes_all else {k: v for k, v in given.items() if k in names}


def _calls(samples: Copies, size: int) -> Iterator[list[int]]:
    """Places of at most `size` samples, those of one prompt kept together."""
    call: list[int] = []
    for prompt in _prompts(samples, range(len(samples))):
        if call and len(call) + len(prompt) > size:
            yield call
            call = []
        call += prompt
    if call:
        yield call


def _prompts(samples: Copies, positions: Sequence[int]) -> Iterator[list[int]]:
    """The places by prompt, in order."""
    for _, group in itertools.groupby(positions, key=samples.prompt_ids.__getitem__):
        yield list(group)
