"""What every LLM judge does alike: shows what is judged as data, asks, and reads the answer.

The text that is judged comes from a model that may have learnt to please its judge. So it is cut to
size, stripped of what could pass for a turn of the conversation, and put between marks that hold a
hash of it, which it therefore cannot contain. An answer counts only where it has the form asked
for, and of several the last.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import Field, model_validator

from selfkd.judgecalls import Call, Caller
from selfkd.judging import OWN, JudgeOptions
from selfkd.records import Message, Sample, Verdict, content_hash
from selfkd.sampling.base import Sampling
from selfkd.views import fill, placeholders

T = TypeVar("T")

_ROLE = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>"
)
"""Marks of a turn in the templates of common model families."""


class PromptedOptions(JudgeOptions):
    """Options of every judge that asks a language model."""

    template: str = ""
    """How it asks; {response} and other names in braces are filled in, and {mark}."""
    unfenced: bool = False
    """Allow a template without {mark}. What is judged can then speak as the judge's own prompt."""
    question_limit: int = Field(2000, ge=1)
    """Characters of the question that are shown; of more, the beginning and the end."""
    response_limit: int = Field(4000, ge=1)
    """Characters of what is judged that are shown, likewise."""
    frozen: str | None = Field(None, pattern=r"^(base|round-\d+)$")
    """Have this policy judge, such as base, instead of the one whose round it is."""

    @model_validator(mode="after")
    def _shows(self) -> "PromptedOptions":
        names = placeholders(self.template)
        if missing := self._needed() - names:
            raise ValueError(f"the template shows nothing of {{{min(missing)}}}")
        if "mark" not in names and not self.unfenced:
            raise ValueError(
                "the template has no {mark}: write <{mark}> before what is judged and </{mark}> "
                "after it, or set unfenced: true"
            )
        return self

    def _needed(self) -> set[str]:
        return {"question", "response"}

    def message(self, question: str, responses: Mapping[str, str], **more: str) -> Message:
        """The template filled in, as a user message; `responses` are texts that are judged."""
        values = {"question": shown(question, self.question_limit), **more}
        values |= {name: shown(text, self.response_limit) for name, text in responses.items()}
        return fenced(self.template, values)


class DrawnOptions(PromptedOptions):
    """Options of a judge that has its judgement written."""

    temperature: float = Field(0.7, ge=0, le=10, allow_inf_nan=False)
    """Of the judgements."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Of the judgements."""
    max_tokens: int = Field(256, ge=1)
    """Longest judgement; one that is cut off before its end has no verdict."""
    retries: int = Field(1, ge=0, le=5)
    """Times to ask again, more strictly, where nothing could be read."""

    def sampling(self) -> Sampling:
        """How judgements are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0,
            max_tokens=self.max_tokens,
        )


def policy_of(options: Any) -> str:
    """Which policy a prompted judge asks: what `@judge(engine=...)` takes."""
    return options.frozen or OWN


def template(beside: str, name: str) -> str:
    """The text file `name` beside the Python file `beside`."""
    return Path(beside).with_name(name).read_text(encoding="utf-8").rstrip("\n")


def shown(text: str, limit: int) -> str:
    """`text` as a judge sees it: visible characters only, no marks of turns, and cut to `limit`."""
    kept = (c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    text = _ROLE.sub(lambda match: f"{match[0][0]} {match[0][1:]}", "".join(kept))
    if len(text) <= limit:
        return text
    head, tail = (limit + 1) // 2, limit // 2
    left_out = f"[... {len(text) - limit} characters left out ...]"
    return f"{text[:head]}\n{left_out}\n{text[len(text) - tail :]}"


def fenced(template: str, values: Mapping[str, str]) -> Message:
    """`template` filled in, as a user message; {mark} is what none of the values can contain."""
    mark = f"data-{content_hash(dict(values), 8)}"
    return {"role": "user", "content": fill(template, {**values, "mark": mark})}


def last(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of the last line of `text` that `pattern` matches, else None."""
    hits = [m[1] for line in text.splitlines() if (m := pattern.search(line))]
    return hits[-1] if hits else None


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The whole JSON objects in a text, in order; those inside another are not looked at."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
            yield found
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def score_reader(pattern: re.Pattern[str], highest: float) -> Callable[[str], float | None]:
    """Reads the score that a judgement ends in: the number in the last line that matches.

    None where no line does, and for what is not from 0 to `highest`.
    """

    def read(text: str) -> float | None:
        try:
            score = float(last(pattern, text) or "")
        except ValueError:
            return None
        return score if 0 <= score <= highest else None

    return read


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """What was read out of the answers to one call, with the answers themselves."""

    read: tuple[T, ...] = ()
    texts: tuple[str, ...] = ()
    error: str = ""
    cost_usd: float = 0.0

    def verdict(self, sample: Sample, reward: float | None, **fields: Any) -> Verdict:
        """A verdict that carries the cost; without a reward it is `error` or `unparsed`."""
        fields.setdefault("rationale", self.error or (self.texts[0] if self.texts else ""))
        if reward is None:
            fields.setdefault("status", "error" if self.error else "unparsed")
        return sample.verdict(reward, cost_usd=self.cost_usd, **fields)


def ask(
    caller: Caller,
    calls: Sequence[Call],
    read: Callable[[str], T | None],
    *,
    retries: int,
    reminder: str,
) -> list[Answers[T]]:
    """What could be read of each call's answers, in order; unreadable ones are left out.

    A call of which nothing could be read is made again, up to `retries` times, with `reminder` at
    the end of its message.
    """
    found: list[Answers[T]] = [Answers() for _ in calls]
    owed = list(range(len(calls)))
    for attempt in range(retries + 1):
        again = [_reminded(calls[i], reminder) if attempt else calls[i] for i in owed]
        for i, reply in zip(owed, caller.complete(again), strict=True):
            readable = [text for text in map(read, reply.texts) if text is not None]
            found[i] = Answers(
                tuple(readable),
                (*found[i].texts, *reply.texts),
                reply.error,
                found[i].cost_usd + reply.cost_usd,
            )
        owed = [i for i in owed if not found[i].read and not found[i].error]
        if not owed:
            break
    return found


def _reminded(call: Call, reminder: str) -> Call:
    *before, message = call.messages
    content = f"{message['content']}\n\n{reminder}"
    return replace(call, messages=(*before, {**message, "content": content}))


def require_apart(texts: Iterable[str]) -> None:
    """ValueError where one text begins another: their likelihoods would overlap."""
    ordered = sorted(texts)
    for one, other in itertools.pairwise(ordered):
        if other.startswith(one):
            raise ValueError(
                f"{one!r} is how {other!r} begins, so they cannot be told apart: write letters"
            )
