"""A pattern's last match is the reference answer, or is simply there."""

import re
from typing import Literal

from pydantic import model_validator

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions


class RegexOptions(JudgeOptions):
    """Options of the judge `regex`."""

    pattern: re.Pattern[str]
    """Python regular expression, searched in the completion; the last match counts."""
    group: int | str | None = None
    """The group to read; default: the first one, or the whole match where there is none."""
    compare: Literal["answer", "presence"] = "answer"
    """What earns the reward: a match that equals the reference answer, or any match."""
    ignore_case: bool = False
    """Compare with the answer without regard to case; in the pattern write (?i)."""

    @model_validator(mode="after")
    def _group_exists(self) -> "RegexOptions":
        known = [*range(self.pattern.groups + 1), *self.pattern.groupindex]
        if self.group is not None and self.group not in known:
            raise ValueError(f"the pattern has no group {self.group!r}, only {known}")
        return self


def _compares(options: RegexOptions) -> bool:
    return options.compare == "answer"


@judge("regex", gold=_compares, needs_answer=_compares)
def regex(sample: Sample, options: RegexOptions) -> Verdict:
    """A pattern's last match is the reference answer, or is simply there."""
    found = list(options.pattern.finditer(sample.completion))
    if not found:
        return sample.verdict(0.0, rationale="no_answer")
    group = options.group if options.group is not None else min(1, options.pattern.groups)
    read = (found[-1][group] or "").strip()
    if not _compares(options):
        return sample.verdict(1.0, answer=read)
    if sample.answer is None:
        raise ValueError("the prompt has no reference answer")
    a, b = read, sample.answer.strip()
    right = a.casefold() == b.casefold() if options.ignore_case else a == b
    return sample.verdict(right, answer=read)
