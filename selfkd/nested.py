"""Judges inside judges: what an ensemble, a cascade or a teacher is made of."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, PlainSerializer, PlainValidator

from selfkd.batches import Copies
from selfkd.errors import UsageError
from selfkd.judgecalls import Caller
from selfkd.judgerun import JudgeRunner
from selfkd.judging import JudgeSpec, inner_judges, resolve_judge
from selfkd.plugins import judge
from selfkd.records import Sample, Verdict
from selfkd.verdictcache import Store, VerdictCache

T = TypeVar("T")


def _checked(value: Any) -> JudgeSpec:
    spec = value if isinstance(value, JudgeSpec) else resolve_judge(value, Path.cwd())
    spec.validate()
    return spec


NestedJudge = Annotated[
    JudgeSpec, PlainValidator(_checked), PlainSerializer(lambda spec: spec.identity())
]
"""An option that is a judge: a name, or `{use: name, option: value}`, as in a config.

Part of the outer judge's identity are the source and the options of the inner one.
"""


class Nested:
    """A judge that runs within another: one verdict a sample, its failures isolated as in a run.

    If its verdicts are kept for good they are so here too, by its own identity: what stands around
    it may change, or be no judge to keep verdicts of, and nothing is paid twice.
    """

    def __init__(self, spec: JudgeSpec, caller: Caller | None = None) -> None:
        """`caller` answers the calls of the inner judge, if it makes any."""
        self._spec = spec
        self._caller = caller
        self._runner = JudgeRunner(spec, caller=caller)
        # Whom it asks in the run is not known here, and belongs to the key.
        self._keeps = spec.cacheable and spec.engine is None

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """A verdict for each sample, in order; a failure is a verdict of status `error`."""
        # The outer judge's process says where verdicts are kept, if they are.
        path = getattr(self._caller, "kept", None) if self._keeps else None
        if path is None:
            return self._judged(samples, lambda group: None)
        with contextlib.closing(VerdictCache.of(self._spec, path=path)) as cache:
            return cache.serve(
                samples, lambda owed, store: self._judged([samples[i] for i in owed], store)
            )

    def _judged(self, samples: Sequence[Sample], store: Store) -> list[Verdict]:
        found: dict[int, Verdict] = {}
        try:
            for row in self._runner.rows(Copies.of(samples)):
                if row is not None:
                    index, reward, status, answer, rationale, cost = row
                    sample = samples[index]
                    said: Any = (self._spec.name, reward, status, answer, rationale, cost)
                    found[index] = Verdict(sample.id, sample.prompt.id, *said)
        finally:
            store(list(found.items()))  # paid for, also where the rest is not judged any more
        return [found[index] for index in range(len(samples))]


def composed(
    name: str, *, own_caller: bool = False, ready: Callable[[Any], None] | None = None
) -> Callable[[T], T]:
    """Register a judge that is made of others, under a name of its own.

    What it says of itself follows from the judges among its options: it compares with reference
    answers if all of them do; it needs answers, calls and so on if any of them does. `own_caller`:
    it brings a caller, so its inner judges ask no policy of the run, and its verdicts are paid for
    and kept. Elsewhere those of the inner judges are kept, where they may be. `ready` as in
    `@judge`; the inner judges' own is called besides.
    """

    def check_ready(options: BaseModel) -> None:
        if ready:
            ready(options)
        for inner in inner_judges(options):
            inner.check_ready()

    def any_of(what: str) -> Callable[[BaseModel], bool]:
        return lambda options: any(getattr(inner, what) for inner in inner_judges(options))

    return judge(
        name,
        gold=lambda options: all(inner.gold for inner in inner_judges(options)),
        needs_answer=any_of("needs_answer"),
        calls=True if own_caller else any_of("calls"),
        engine=(lambda options: None) if own_caller else _policy,
        writes=False if own_caller else any_of("writes"),
        compares=any_of("compares"),
        cacheable=own_caller,
        ready=check_ready,
    )


def _policy(options: BaseModel) -> str | None:
    """The one policy that inner judges ask."""
    asked = sorted({inner.engine for inner in inner_judges(options) if inner.engine})
    if len(asked) > 1:
        raise UsageError(
            f"inner judges ask different policies ({', '.join(asked)}), and the sampler holds one "
            "at a time",
            remedy="give all of them the same `frozen`, or judge in two steps",
        )
    return asked[0] if asked else None
