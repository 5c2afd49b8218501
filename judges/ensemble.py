"""Several judges, one reward: their weighted mean, their least, or what most of them say."""

from typing import Literal

from pydantic import Field, model_validator

from selfkd import Sample, Verdict
from selfkd.judgecalls import Caller
from selfkd.judging import JudgeOptions
from selfkd.nested import Nested, NestedJudge, composed


class EnsembleOptions(JudgeOptions):
    """Options of the judge `ensemble`."""

    judges: list[NestedJudge] = Field(min_length=1)
    """The judges: names, or `{use: name, option: value}`."""
    combine: Literal["weighted", "min", "majority"] = "weighted"
    """The weighted mean; the least; or 1 where more than half say yes, and 0 where less do."""
    weights: tuple[float, ...] = ()
    """One for each judge; default: all the same."""
    scales: tuple[float, ...] = ()
    """What each judge's reward is divided by first, such as 5 for a scale of 0 to 5; default 1."""
    yes_from: float = 0.5
    """Majority: the reward (after `scales`) from which a judge says yes."""
    unscored: Literal["none", "skip"] = "none"
    """A sample that one judge cannot score: has no reward, or that of the others."""

    @model_validator(mode="after")
    def _as_many(self) -> "EnsembleOptions":
        for name in ("weights", "scales"):
            values = getattr(self, name)
            if values and len(values) != len(self.judges):
                raise ValueError(f"{name} has {len(values)} values for {len(self.judges)} judges")
            if any(not value > 0 for value in values):
                raise ValueError(f"{name} must be greater than 0")
        return self


@composed("ensemble")
class Ensemble:
    """Several judges, one reward: their weighted mean, their least, or what most of them say."""

    def __init__(self, options: EnsembleOptions, caller: Caller | None = None) -> None:
        self._options = options
        self._judges = [Nested(spec, caller) for spec in options.judges]

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample, from one of each judge."""
        said = zip(*(inner.judge(samples) for inner in self._judges), strict=True)
        return [self._verdict(s, list(found)) for s, found in zip(samples, said, strict=True)]

    def _verdict(self, sample: Sample, said: list[Verdict]) -> Verdict:
        cost = sum(verdict.cost_usd for verdict in said)
        told = "; ".join(
            f"{v.judge} {v.status if v.reward is None else f'{v.reward:g}'}" for v in said
        )
        lacking = [v for v in said if v.reward is None]
        if lacking and (self._options.unscored == "none" or len(lacking) == len(said)):
            why = f"{told}\n\n{lacking[0].rationale}"
            return sample.verdict(None, status=lacking[0].status, rationale=why, cost_usd=cost)
        answer = next((v.answer for v in said if v.answer is not None), None)
        reward = self._combined(said)
        return sample.verdict(reward, answer=answer, rationale=told, cost_usd=cost)

    def _combined(self, said: list[Verdict]) -> float | None:
        """The reward, or None where votes are as many for as against."""
        options = self._options
        scales = options.scales or (1.0,) * len(said)
        weights = options.weights or (1.0,) * len(said)
        rewards = {k: v.reward / scales[k] for k, v in enumerate(said) if v.reward is not None}
        total = sum(weights[k] for k in rewards)
        if options.combine == "min":
            return min(rewards.values())
        if options.combine == "weighted":
            return sum(weights[k] * reward for k, reward in rewards.items()) / total
        yes = sum(weights[k] for k, reward in rewards.items() if reward >= options.yes_from)
        return None if yes * 2 == total else float(yes * 2 > total)
