"""The last number of the completion equals the reference answer.

Reads thousands separators, signs, decimals, exponents and fractions; currency and percent signs
and units are passed over. Only the last number counts, so an answer planted earlier does not win.
"""

import re
from decimal import Decimal
from typing import Literal

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions

_NUMBER = re.compile(
    r"((?<![\w.)\]}])[-+])?"  # a sign, unless it is a minus between two terms
    r"[$€£]?"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"([eE][-+]?\d+\b)?"
    r"(/\d+(?![\d/]))?"
)
_DIGIT = re.compile(r"\d")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")


class NumberOptions(JudgeOptions):
    """Options of the judge `number`."""

    tolerance: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Largest difference that still counts as equal."""
    fractions: bool = True
    """Read 3/4 as one number, not as a 4."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""


@judge("number", gold=True, needs_answer=True)
def number(sample: Sample, options: NumberOptions) -> Verdict:
    """The last number of the completion equals the reference answer."""
    expected = last_number(sample.answer or "", fractions=options.fractions)
    if expected is None:
        raise ValueError(f"the reference answer {sample.answer!r} holds no number")
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    read = last_number(sample.completion, fractions=options.fractions)
    if read is None:
        return sample.verdict(0.0, rationale="no_answer")
    return sample.verdict(_equal(read, expected, options.tolerance), answer=read)


def last_number(text: str, *, fractions: bool = True) -> str | None:
    """The last number of a text, plainly written: `-1234.5`, `3/4`."""
    text = _FRACTION.sub(r"\1/\2", text.replace("−", "-").replace("{,}", ","))  # noqa: RUF001
    # No number goes over a space, and every digit is in one: the last word with a digit has it.
    word = next((word for word in reversed(text.split()) if _DIGIT.search(word)), None)
    if word is None:
        return None
    *_, last = _NUMBER.finditer(word)
    sign, digits, exponent, over = (part or "" for part in last.groups())
    if over and not fractions:
        return over[1:]
    return f"{sign.strip('+')}{digits.replace(',', '')}{exponent}{over}"


def _equal(read: str, expected: str, tolerance: float) -> bool:
    try:
        a, b = _value(read), _value(expected)
        return a == b or abs(a - b) <= Decimal(repr(tolerance))
    except ArithmeticError:  # a division by zero, or an absurd exponent
        return False


def _value(text: str) -> Decimal:
    above, _, below = text.partition("/")
    return Decimal(above) / Decimal(below) if below else Decimal(above)
