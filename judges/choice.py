"""The completion settles on the letter of the right option.

Read in this order, the last one each time: a statement ("the answer is B", "Answer: (B)",
"\\boxed{B}"), a letter in brackets, a line that is only a letter, a letter that opens the
completion ("B. Paris"). Letters planted before the last statement do not win.
"""

import functools
import re
from typing import Literal

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions

_MARKS = r"[\s*_$\"'`]*"
_LINK = r"(?:[:=]|\b(?:is|would be|should be)\b:?)(?:\s*(?:option|choice)\b)?"


class ChoiceOptions(JudgeOptions):
    """Options of the judge `choice`."""

    letters: str = Field("ABCDEFGHIJ", pattern="^[A-Z]{2,26}$")
    """The letters that options may have."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""


@judge("choice", gold=True, needs_answer=True)
def choice(sample: Sample, options: ChoiceOptions) -> Verdict:
    """The completion settles on the letter of the right option."""
    expected = (sample.answer or "").strip("() .:").upper()
    if len(expected) != 1 or expected not in options.letters:
        raise ValueError(f"the reference answer {sample.answer!r} is not of {options.letters}")
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    read = last_letter(sample.completion, options.letters)
    if read is None:
        return sample.verdict(0.0, rationale="no_answer")
    return sample.verdict(read == expected, answer=read)


def last_letter(text: str, letters: str) -> str | None:
    """The letter that a text settles on."""
    for pattern in _patterns(letters):
        found = pattern.findall(text)
        if found:
            return found[-1].upper()
    return None


@functools.cache
def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    # Bare letters must be capitals, for "a" is also a word; in brackets either case will do.
    either = f"[{letters}{letters.lower()}]"
    letter = rf"(?=\(|[{letters}])\(?({either})\b"
    told = rf"(?i:(?:answer|(?:correct|right|best) (?:option|choice)){_MARKS}{_LINK})"
    return (
        re.compile(rf"(?:{told}|\\boxed\{{){_MARKS}(?:\\text(?:bf)?\{{)?{letter}"),
        re.compile(rf"\(({either})\)"),
        re.compile(rf"^{_MARKS}([{letters}])[.):]?{_MARKS}$", re.MULTILINE),
        re.compile(rf"\A{_MARKS}([{letters}])[.):]"),
    )
