"""Judges of the addition testbed, as a user's own file would hold them."""

from selfkd import Sample, Verdict, judge


def _answer(sample: Sample) -> str:
    return sample.completion.rpartition(";")[2].strip()


@judge("right", gold=True, needs_answer=True)
def right(sample: Sample) -> Verdict:
    """1 for the right sum."""
    got = _answer(sample)
    return sample.verdict(float(got == sample.answer), answer=got)


@judge("digit_share", gold=True, needs_answer=True)
def digit_share(sample: Sample) -> Verdict:
    """Share of the sum's digits that are right and in place."""
    got, want = _answer(sample), sample.answer or ""
    same = sum(a == b for a, b in zip(got[::-1], want[::-1], strict=False))
    return sample.verdict(same / max(len(got), len(want), 1), answer=got)


@judge("long")
def long(sample: Sample) -> float:
    """A judge that loves length alone: the share of 40 characters that are there."""
    return min(1.0, len(sample.completion) / 40)
