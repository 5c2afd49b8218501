"""A reasoning-gym task scores the answer with its own rules, which may give part of the reward.

For prompts drawn from `reasoning_gym:TASK`, whose column of that name holds the task, its options
and the entry to score against.
"""

import functools
import json
import re
from typing import Any, Literal

from selfkd import Sample, Verdict, judge
from selfkd.judges.number import last_number
from selfkd.judging import JudgeOptions

Extract = Literal["auto", "tag", "last_number", "last_line", "whole"]

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymOptions(JudgeOptions):
    """Options of the judge `reasoning_gym`."""

    extract: Extract = "auto"
    """What is taken for the answer: the last <answer> tag, the last number, the last line that is
    not blank, or the whole completion. auto takes the tag where there is one, then the number if
    the reference answer is one, then the last line."""
    partial: bool = True
    """Keep the task's partial credit, which many give to any answer that contains the right one;
    without it all but a full reward is 0."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""


@judge("reasoning_gym", gold=True)
def reasoning_gym(sample: Sample, options: ReasoningGymOptions) -> Verdict:
    """The reasoning-gym task that made the prompt scores the answer with its own rules."""
    row = sample.columns.get("reasoning_gym")
    if row is None:
        raise ValueError("the prompt has no column reasoning_gym; use prompts: reasoning_gym:TASK")
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    read = extract(sample.completion, options.extract, str(row["entry"]["answer"]))
    if not read:
        return sample.verdict(0.0, rationale="no_answer")
    task = _task(row["task"], json.dumps(row.get("options") or {}, sort_keys=True))
    reward = float(task.score_answer(read, row["entry"]))
    return sample.verdict(reward if options.partial or reward >= 1 else 0.0, answer=read)


def extract(completion: str, how: Extract, reference: str) -> str | None:
    """The answer in a completion, or None; `reference` only decides what kind is looked for."""
    tags = _TAG.findall(completion)
    if how == "auto":
        is_number = last_number(reference) == reference.strip()
        how = "tag" if tags else "last_number" if is_number else "last_line"
    if how == "tag":
        return tags[-1].strip() if tags else None
    if how == "last_number":
        return last_number(completion)
    lines = completion.strip().splitlines() or [""]
    return completion.strip() if how == "whole" else lines[-1].strip()


@functools.lru_cache(maxsize=64)
def _task(name: str, options: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **json.loads(options))
