"""The answer that most of a prompt's samples give is the label: self-consistency, no reference.

Wang et al. 2022, arXiv:2203.11171; as a label for training, LMSI (Huang et al. 2023,
arXiv:2210.11610, section 3.1). Whose answer is the label has reward 1, the others 0; the share of
the votes is the confidence. Where most votes are wrong so is the label.
"""

import re
from collections import Counter, defaultdict
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.judges.choice import last_letter
from selfkd.judges.number import last_number
from selfkd.judging import JudgeOptions


class MajorityOptions(JudgeOptions):
    """Options of the judge `majority`."""

    answer: Literal["number", "letter", "text"] = "number"
    """What is read: the last number, the letter settled on, or the whole text without space at its
    ends."""
    pattern: re.Pattern[str] | None = None
    """Read this instead: the first group of the last match, or the whole match."""
    truncated: Literal["out", "read"] = "out"
    """A completion cut off at the token limit has no vote and reward 0, or is read like others."""
    least_share: float = Field(0.0, ge=0, le=1)
    """Share of the votes that makes an answer the label; below it no sample has a reward."""
    reward: Literal["agrees", "share"] = "agrees"
    """1 for the label's samples and 0 for others, or for each the share of its own answer."""


@judge("majority", compares=True)
class Majority:
    """The answer that most of a prompt's samples give is the label; no reference is needed."""

    def __init__(self, options: MajorityOptions) -> None:
        self._options = options

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample; of answers with as many votes the first one is the label."""
        read = [self._read(sample) for sample in samples]
        votes: dict[str, Counter[object]] = defaultdict(Counter)
        for sample, answer in zip(samples, read, strict=True):
            if answer is not None:
                votes[sample.prompt.id][_value(answer)] += 1
        return [self._verdict(s, a, votes[s.prompt.id]) for s, a in zip(samples, read, strict=True)]

    def _read(self, sample: Sample) -> str | None:
        options, text = self._options, sample.completion
        if sample.finish == "length" and options.truncated == "out":
            return None
        if options.pattern:
            found = list(options.pattern.finditer(text))
            return (found[-1][min(1, options.pattern.groups)] or "").strip() if found else None
        if options.answer == "number":
            return last_number(text)
        if options.answer == "letter":
            return last_letter(text, "ABCDEFGHIJ")
        return text.strip() or None

    def _verdict(self, sample: Sample, answer: str | None, votes: Counter[object]) -> Verdict:
        if answer is None:
            cut = sample.finish == "length" and self._options.truncated == "out"
            return sample.verdict(0.0, rationale="length" if cut else "no_answer")
        # `most_common` keeps the order of those with as many votes.
        (label, most), *others = votes.most_common()
        tie = ", a tie" if others and others[0][1] == most else ""
        why = f"label {label} with {most} of {votes.total()} votes{tie}"
        if most < self._options.least_share * votes.total():
            return sample.verdict(None, status="abstained", answer=answer, rationale=why)
        own = votes[_value(answer)]
        agrees = float(_value(answer) == label)
        reward = agrees if self._options.reward == "agrees" else own / votes.total()
        return sample.verdict(reward, answer=answer, rationale=why)


def _value(answer: str) -> object:
    """What two spellings of an answer have in common: 18 and 18.0 are one vote."""
    above, _, below = answer.partition("/")
    try:
        numbers = [Decimal(above), Decimal(below or "1")]
        if any(abs(number.adjusted()) > 30 for number in numbers):
            return answer  # as a fraction it would fill the memory
        return Fraction(numbers[0]) / Fraction(numbers[1])
    except (ArithmeticError, ValueError):
        return answer
