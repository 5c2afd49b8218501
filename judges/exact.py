"""The completion is the reference answer, letter for letter, or as loosely as asked for."""

import unicodedata
from typing import Literal

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions


class ExactOptions(JudgeOptions):
    """Options of the judge `exact`."""

    strip: bool = True
    """Ignore space at both ends, and take any run of it for one blank."""
    ignore_case: bool = False
    """Take A and a for the same."""
    ignore_punctuation: bool = False
    """Leave punctuation out of the comparison; mind that -5 then equals 5."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""


@judge("exact", gold=True, needs_answer=True)
def exact(sample: Sample, options: ExactOptions) -> Verdict:
    """The completion is the reference answer."""
    if sample.answer is None:
        raise ValueError("the prompt has no reference answer")
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    read = _normal(sample.completion, options)
    if not read:
        return sample.verdict(0.0, rationale="no_answer")
    return sample.verdict(read == _normal(sample.answer, options), answer=read)


def _normal(text: str, options: ExactOptions) -> str:
    text = unicodedata.normalize("NFC", text)
    if options.ignore_punctuation:
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    if options.ignore_case:
        text = text.casefold()
    return " ".join(text.split()) if options.strip else text
