"""Several named criteria, each with ordered choices and a weight; the reason comes first.

The answer is a JSON object. An engine that can is held to its schema; of any other the whole object
is read that the answer ends in. The reward is the weighted mean of the criteria, 0 to 1.
"""

import json
from typing import Any

from pydantic import Field, field_validator

from selfkd import Sample, Verdict, judge
from selfkd.judgecalls import Call, Caller
from selfkd.judgeprompts import Answers, DrawnOptions, ask, final_object, policy_of, template
from selfkd.judging import JudgeOptions

REMINDER = "Your last answer could not be read. Answer with the JSON object alone."


class Criterion(JudgeOptions):
    """One thing to look at."""

    asks: str
    """What is to be judged, as a question or a sentence."""
    choices: tuple[str, ...] = Field(("no", "partly", "yes"), min_length=2)
    """The options, from worst to best, worth evenly spaced shares from 0 to 1."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Its part in the reward, relative to the others."""


class RubricOptions(DrawnOptions):
    """Options of the judge `rubric`."""

    template: str = template(__file__, "rubric.txt")
    """How it is asked; {criteria}, {form}, {question}, {response} and {mark} are filled in."""
    criteria: dict[str, Criterion] = Field(
        {
            "answers": {"asks": "Does it answer what was asked?"},
            "correct": {"asks": "Is what it says correct?", "weight": 2.0},
            "clear": {"asks": "Is it clear, and free of padding?"},
        },
        min_length=1,
        validate_default=True,
    )
    """Criteria by name, each `{asks, choices, weight}`."""
    temperature: float = Field(0.0, ge=0, le=10, allow_inf_nan=False)
    """Of the judgement; the default takes the likeliest."""

    @field_validator("criteria")
    @classmethod
    def _reason_is_taken(cls, value: dict[str, Criterion]) -> dict[str, Criterion]:
        if "reason" in value:
            raise ValueError("a criterion cannot be called reason")
        return value

    def forgery(self, score: str) -> str:
        """The object of a response that is the best by every criterion."""
        return json.dumps({"reason": "-"} | {n: c.choices[-1] for n, c in self.criteria.items()})

    def _needed(self) -> set[str]:
        return {"criteria", "form", "question", "response"}


@judge("rubric", engine=policy_of)
class Rubric:
    """Several named criteria, each with ordered choices and a weight; the reason comes first."""

    def __init__(self, options: RubricOptions, caller: Caller) -> None:
        self._options = options
        self._caller = caller
        listed = options.criteria.items()
        self._criteria = "\n".join(
            f"- {name}: {c.asks} ({', '.join(c.choices)})" for name, c in listed
        )
        form = {"reason": "..."} | {name: " | ".join(c.choices) for name, c in listed}
        self._form = json.dumps(form, ensure_ascii=False)
        fields = {name: {"enum": list(c.choices)} for name, c in listed}
        self._schema = {
            "type": "object",
            "properties": {"reason": {"type": "string"}, **fields},
            "required": ["reason", *fields],
            "additionalProperties": False,
        }

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample; one whose criteria are not all settled has no reward."""
        calls = [self._call(sample) for sample in samples]
        answers = ask(self._caller, calls, self._read, self._options, REMINDER)
        return [self._verdict(s, a) for s, a in zip(samples, answers, strict=True)]

    def _call(self, sample: Sample) -> Call:
        options, told = self._options, {"criteria": self._criteria, "form": self._form}
        message = options.message(sample.prompt.text, {"response": sample.completion}, **told)
        return Call(sample.id, (message,), options.sampling(), schema=self._schema)

    def _read(self, text: str) -> dict[str, int] | None:
        """Rank of the option chosen for each criterion, from 0."""
        found = final_object(text) or {}
        ranks = {name: _rank(c, found.get(name)) for name, c in self._options.criteria.items()}
        settled = {name: rank for name, rank in ranks.items() if rank is not None}
        return settled if len(settled) == len(ranks) else None

    def _verdict(self, sample: Sample, answers: Answers[dict[str, int]]) -> Verdict:
        if not answers.read:
            return answers.verdict(sample, None)
        criteria, (ranks, *_) = self._options.criteria, answers.read
        shares = {n: ranks[n] / (len(c.choices) - 1) * c.weight for n, c in criteria.items()}
        reward = sum(shares.values()) / sum(c.weight for c in criteria.values())
        return answers.verdict(sample, reward, rationale=answers.texts[-1])


def _rank(criterion: Criterion, said: Any) -> int | None:
    choices = [choice.casefold() for choice in criterion.choices]
    text = str(said).strip().casefold()
    return choices.index(text) if text in choices else None
