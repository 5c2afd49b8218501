"""A score weighted by the probability of each point of the scale; nothing is written or parsed.

One forward over the question and the response gives the log-probabilities of the scale's tokens as
the next one, and the reward is their expectation (G-Eval, Liu et al. 2023, arXiv:2303.16634,
section 2.3). `form: yes_no` asks whether the response is correct: P(True) of Kadavath et al. 2022,
arXiv:2207.05221, section 3. Works for models too small to write a judgement.
"""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from selfkd import Sample, Verdict, judge
from selfkd.judgecalls import Caller, Choices, Likelihoods
from selfkd.judgeprompts import PromptedOptions, policy_of, require_apart, template

_FORMS: dict[str, dict[str, Any]] = {
    "score": {
        "template": template(__file__, "expected_score.txt"),
        "scale": {str(points): float(points) for points in range(6)},
        "opening": "Score: ",
    },
    "yes_no": {
        "template": template(__file__, "expected_score_yes_no.txt"),
        "scale": {"Yes": 1.0, "No": 0.0},
        "opening": "",
    },
}


class ExpectedScoreOptions(PromptedOptions):
    """Options of the judge `expected_score`."""

    form: Literal["score", "yes_no"] = "score"
    """A scale of points, or the probability that the response is correct. Settles the defaults of
    template, scale and opening."""
    scale: dict[str, float] = Field(default_factory=dict)
    """What the answer may be, and what each is worth; default 0 to 5, or Yes 1 and No 0."""
    opening: str = ""
    """What the answer begins with, before the scale's text; default "Score: ", or nothing."""
    least_mass: float = Field(0.05, ge=0, le=1)
    """Probability that the whole scale must have; below it the model was not answering."""

    @model_validator(mode="before")
    @classmethod
    def _of_form(cls, value: Any) -> Any:
        form = value.get("form", "score") if isinstance(value, dict) else None
        return {**_FORMS[form], **value} if form in _FORMS else value

    @model_validator(mode="after")
    def _apart(self) -> "ExpectedScoreOptions":
        if len(self.scale) < 2:
            raise ValueError("a scale has two answers at least")
        require_apart(self.scale)
        return self

    def forgery(self, score: str) -> str:
        """The opening, and the answer that is worth the most."""
        return self.opening + max(self.scale, key=lambda answer: self.scale[answer])


@judge("expected_score", engine=policy_of, writes=False)
class ExpectedScore:
    """A score weighted by the probability of each point of the scale; nothing is written."""

    def __init__(self, options: ExpectedScoreOptions, caller: Caller) -> None:
        self._options = options
        self._caller = caller

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample, from one forward each."""
        options = self._options
        asked = [
            Choices(
                about=s.id,
                messages=(options.message(s.prompt.text, {"response": s.completion}),),
                choices=tuple(options.scale),
                opening=options.opening,
            )
            for s in samples
        ]
        answers = self._caller.weigh(asked)
        return [self._verdict(s, a) for s, a in zip(samples, answers, strict=True)]

    def _verdict(self, sample: Sample, told: Likelihoods) -> Verdict:
        cost = told.cost_usd
        if told.error:
            return sample.verdict(None, status="error", rationale=told.error, cost_usd=cost)
        shares = [0.0 if p is None else math.exp(p) for p in told.logprobs]
        mass = sum(shares)
        if not mass or mass < self._options.least_mass:
            why = f"the scale has {mass:.2%} of the probability"
            return sample.verdict(None, status="unparsed", rationale=why, cost_usd=cost)
        scale = self._options.scale
        shares = {text: p / mass for text, p in zip(scale, shares, strict=True)}
        reward = sum(share * scale[text] for text, share in shares.items())
        spread = ", ".join(f"{text} {share:.3f}" for text, share in shares.items())
        likeliest = max(shares, key=lambda text: shares[text])
        rationale = f"{spread}; the scale has {mass:.1%}"
        return sample.verdict(reward, answer=likeliest, rationale=rationale, cost_usd=cost)
