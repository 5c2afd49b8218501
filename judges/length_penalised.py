"""Another judge's reward, less a penalty for length: LLM judges above all like it long.

Self-Rewarding's answers grew from 1092 to 2552 characters in three rounds (arXiv:2401.10020,
table 1).
"""

from pydantic import Field

from selfkd import Sample, Verdict
from selfkd.judgecalls import Caller
from selfkd.judging import JudgeOptions
from selfkd.nested import Nested, NestedJudge, composed


class LengthPenalisedOptions(JudgeOptions):
    """Options of the judge `length_penalised`."""

    judge: NestedJudge
    """Whose reward it is: a name, or `{use: name, option: value}`."""
    free: int = Field(200, ge=0)
    """Tokens that cost nothing."""
    per_100: float = Field(0.1, gt=0, allow_inf_nan=False)
    """What each further 100 tokens take off the reward."""
    most: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The largest penalty."""


@composed("length_penalised")
class LengthPenalised:
    """Another judge's reward, less a penalty for length."""

    def __init__(self, options: LengthPenalisedOptions, caller: Caller | None = None) -> None:
        self._options = options
        self._judge = Nested(options.judge, caller)

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample; what has no reward keeps its reason."""
        said = self._judge.judge(samples)
        return [self._verdict(s, v) for s, v in zip(samples, said, strict=True)]

    def _verdict(self, sample: Sample, verdict: Verdict) -> Verdict:
        length = len(sample.tokens) or len(sample.completion.split())
        over = max(0, length - self._options.free)
        penalty = min(self._options.most, over / 100 * self._options.per_100)
        reward, rationale = verdict.reward, verdict.rationale
        if reward is not None and penalty:
            rationale = f"{reward:g} less {penalty:g} for {length} tokens\n\n{rationale}"
            reward -= penalty
        return sample.verdict(
            reward,
            status=verdict.status,
            answer=verdict.answer,
            rationale=rationale,
            cost_usd=verdict.cost_usd,
        )
