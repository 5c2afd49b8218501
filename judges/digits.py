"""Share of the reference answer's digits that the completion's last number gets right.

A graded reward for arithmetic, as ReST's rising thresholds need one: digits are compared from the
right, and a number that is longer or shorter than the reference loses a share for each digit.
"""

import re

from selfkd import Sample, Verdict, judge

_NUMBER = re.compile(r"-?\d[\d,]*")


@judge("digits", gold=True, needs_answer=True)
def digits(sample: Sample) -> Verdict:
    numbers = _NUMBER.findall(sample.completion)
    if not numbers:
        return sample.verdict(0.0, rationale="no number")
    got, want = (t.replace(",", "").rstrip() for t in (numbers[-1], sample.answer or ""))
    if got.startswith("-") != want.startswith("-"):
        return sample.verdict(0.0, answer=got, rationale="wrong sign")
    got, want = got.lstrip("-"), want.lstrip("-")
    right = sum(a == b for a, b in zip(reversed(got), reversed(want), strict=False))
    return sample.verdict(right / max(len(got), len(want), 1), answer=got)
