"""Chance: a control that no loop may profit from, for a curve without one proves nothing."""

import hashlib

from pydantic import Field

from selfkd import Sample, judge
from selfkd.judging import JudgeOptions


class RandomOptions(JudgeOptions):
    """Options of the judge `random`."""

    share: float = Field(0.5, ge=0, le=1)
    """Share of samples that get reward 1; the others get 0."""
    graded: bool = False
    """Give rewards spread evenly over 0 to 1 instead."""
    seed: int = 0
    """Another seed rewards other samples."""


@judge("random", gold=False)
def random(sample: Sample, options: RandomOptions) -> float:
    """A reward that depends on the sample's id and the seed, and on nothing else."""
    digest = hashlib.sha256(f"{options.seed} {sample.id}".encode()).digest()
    draw = int.from_bytes(digest[:6], "big") / 2**48
    return draw if options.graded else float(draw < options.share)
