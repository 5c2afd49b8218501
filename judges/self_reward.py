"""The policy rates its own answers on an additive scale of 0 to 5, averaged over several draws.

Self-Rewarding (Yuan et al. 2024, arXiv:2401.10020, section 2.2, figure 2), in our words. The judge
is the policy whose round it is, on the sampler's own engine; `frozen: base` keeps the first one.
"""

import re

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.judgecalls import Call, Caller
from selfkd.judgeprompts import Answers, DrawnOptions, ask, policy_of, score_reader, template

REMINDER = 'Your last answer could not be read. End with a line "Score: N", N from 0 to 5.'


class SelfRewardOptions(DrawnOptions):
    """Options of the judge `self_reward`."""

    template: str = template(__file__, "self_reward.txt")
    """How a score is asked for; {question}, {response} and {mark} are filled in."""
    score_pattern: re.Pattern[str] = re.compile(
        r"^[\s*#]*Score\**:(?:[\s*]*([0-5](?:\.\d+)?)(?:\s*/\s*5)?[\s*.]*$)?"
    )
    """The last line that matches holds the score: its first group. Without that group, and where it
    matches twice, there is none. Begin one's own with ^, or a quoted score counts."""
    highest: float = 5.0
    """The end of the scale: what is above it, or below 0, is no score."""
    reminder: str = REMINDER
    """What is added where an answer had no score."""
    draws: int = Field(3, ge=1)
    """Judgements of each sample, averaged."""
    least_draws: int = Field(1, ge=1)
    """Draws with a score that a sample needs, or else it has no reward."""


@judge("self_reward", engine=policy_of)
class SelfReward:
    """The policy rates its own answers on an additive scale of 0 to 5, over several draws."""

    def __init__(self, options: SelfRewardOptions, caller: Caller) -> None:
        self._options = options
        self._caller = caller
        self._score = score_reader(options.score_pattern, options.highest)

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample: the mean of the scores that could be read."""
        options = self._options
        calls = [
            Call(
                about=s.id,
                messages=(options.message(s.prompt.text, {"response": s.completion}),),
                sampling=options.sampling(),
                n=options.draws,
            )
            for s in samples
        ]
        answers = ask(self._caller, calls, self._score, options, options.reminder)
        return [self._verdict(s, a) for s, a in zip(samples, answers, strict=True)]

    def _verdict(self, sample: Sample, answers: Answers[float]) -> Verdict:
        scores = answers.read
        if len(scores) < self._options.least_draws:
            return answers.verdict(sample, None)
        told = ", ".join(f"{score:g}" for score in scores)
        rationale = f"{told} of {self._options.highest:g}\n\n{answers.texts[-1]}"
        return answers.verdict(sample, sum(scores) / len(scores), rationale=rationale)
