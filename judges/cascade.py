"""Cheap judges first: a later one sees only what those before it let through."""

from typing import Literal

from pydantic import Field

from selfkd import Sample, Verdict
from selfkd.judgecalls import Caller
from selfkd.judging import JudgeOptions
from selfkd.nested import Nested, NestedJudge, composed


class CascadeOptions(JudgeOptions):
    """Options of the judge `cascade`."""

    judges: list[NestedJudge] = Field(min_length=2)
    """The judges in order, the cheapest first: names, or `{use: name, option: value}`."""
    pass_from: float = 1.0
    """The reward from which a judge lets a sample through to the next."""
    stopped: float | Literal["own"] = 0.0
    """The reward of a sample that is not let through: a number, or own, that of the judge which
    stopped it."""


@composed("cascade")
class Cascade:
    """Cheap judges first: a later one sees only what those before it let through."""

    def __init__(self, options: CascadeOptions, caller: Caller | None = None) -> None:
        self._options = options
        self._judges = [Nested(spec, caller) for spec in options.judges]

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample, of the last judge that saw it; the costs add up."""
        found: dict[str, Verdict] = {}
        cost = dict.fromkeys((s.id for s in samples), 0.0)
        left = list(samples)
        for position, inner in enumerate(self._judges):
            is_last = position == len(self._judges) - 1
            said = list(zip(left, inner.judge(left), strict=True))
            for sample, verdict in said:
                cost[sample.id] += verdict.cost_usd
                found[sample.id] = self._kept(sample, verdict, is_last, cost[sample.id])
            left = [
                s for s, v in said if v.reward is not None and v.reward >= self._options.pass_from
            ]
        return [found[sample.id] for sample in samples]

    def _kept(self, sample: Sample, verdict: Verdict, is_last: bool, cost: float) -> Verdict:
        reward, told = verdict.reward, f"{verdict.judge}: {verdict.rationale}"
        stopped = reward is not None and reward < self._options.pass_from and not is_last
        if stopped and self._options.stopped != "own":
            reward, told = float(self._options.stopped), f"stopped by {told}"
        return sample.verdict(
            reward, status=verdict.status, answer=verdict.answer, rationale=told, cost_usd=cost
        )
