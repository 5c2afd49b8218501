"""The completion's final expression is mathematically equal to the reference answer.

Uses math-verify (LaTeX and plain expressions, sets, intervals, matrices). Its own time-outs work
by signals and are off: a judge process that hangs is ended and replaced by the pool.
"""

import logging
from typing import Any, Literal

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions

_BOX = "\\boxed"


class MathOptions(JudgeOptions):
    """Options of the judge `math`."""

    digits: int = 6
    """Decimal places that must agree where numbers are compared."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""


@judge("math", gold=True, needs_answer=True)
def math(sample: Sample, options: MathOptions) -> Verdict:
    """The completion's final expression is mathematically equal to the reference answer."""
    from math_verify import verify

    expected = _parse(_delimited(sample.answer or ""))
    if not expected:
        raise ValueError(f"the reference answer {sample.answer!r} is no mathematical expression")
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    read = _parse(_last_box(sample.completion))
    if not read:
        return sample.verdict(0.0, rationale="no_answer")
    # What goes wrong in the comparison is the judge's failure, not a wrong answer.
    right = verify(
        expected, read, float_rounding=options.digits, timeout_seconds=None, raise_on_error=True
    )
    return sample.verdict(right, answer=str(read[-1]))


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that time-outs are off
    return parse(text, parsing_timeout=None)  # type: ignore[arg-type]


def _delimited(answer: str) -> str:
    marked = any(mark in answer for mark in ("$", "\\(", "\\[", _BOX))
    return answer if marked or not answer.strip() else f"${answer}$"


def _last_box(text: str) -> str:
    """The text from the last box on: math-verify would merge all boxes into one set."""
    return text[max(text.rfind(_BOX), 0) :]
