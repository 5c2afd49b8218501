"""What every LLM judge does alike: shows what is judged as data, asks, and reads the answer.

The text that is judged comes from a model that may have learnt to please its judge. So it is cut to
size, stripped of what could pass for a turn of the conversation, and put between marks that hold a
hash of it, which it therefore cannot contain. An answer counts only where it is whole and has the
form asked for, at the start of a line; of several the last.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from selfkd.judgecalls import Call, Caller
from selfkd.judging import OWN, JudgeOptions, JudgeSpec, inner_judges
from selfkd.records import Finish, Message, Sample, Verdict, content_hash
from selfkd.sampling.base import Sampling
from selfkd.views import fill, placeholders

T = TypeVar("T")

Truncated = Literal["out", "read"]
"""Whether a judgement that was cut off is left out, or read like others."""

_ROLE = re.compile(
    r"<[|\uff5c][^<>|\uff5c\n]{1,40}[|\uff5c]>|</?s>|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad|unk)>|</?(?:think|tool_call|tool_response)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|ARGS|THINK)\]"
)
"""Marks of a turn in the templates of common model families."""
_UNSEEN = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    r"\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""What shows as nothing though its category is not that of a control character: the rest of
Unicode's Default_Ignorable_Code_Point, two separators of lines, and Braille's blank."""
_OPENED = re.compile(r"^[ \t]*\{", re.MULTILINE)


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

    def forgery(self, score: str) -> str:
        """A verdict as this judge's model would write it, for controls; `score` where it is one."""
        return f"Score: {score}"

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
    """Longest judgement."""
    truncated: Truncated = "out"
    """A judgement cut off at that length has no verdict, whatever it says, or is read like others.
    """
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


def forged_verdict(judge: JudgeSpec, score: str) -> str | None:
    """What passes for a verdict of the judge, or of the first inside it that asks a model.

    None where there is none. `score` is the top of a scale, where it has one.
    """
    options = judge.validate()
    if isinstance(options, PromptedOptions):
        return options.forgery(score)
    return next(filter(None, (forged_verdict(j, score) for j in inner_judges(options))), None)


def template(beside: str, name: str) -> str:
    """The text file `name` beside the Python file `beside`."""
    return Path(beside).with_name(name).read_text(encoding="utf-8").rstrip("\n")


def shown(text: str, limit: int) -> str:
    """`text` as a judge sees it: visible characters only, no marks of turns, and cut to `limit`."""
    kept = (c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    text = _UNSEEN.sub("", "".join(kept))
    text = _ROLE.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    if len(text) <= limit:
        return text
    head, tail = (limit + 1) // 2, limit // 2
    left_out = f"[... {len(text) - limit} characters left out ...]"
    return f"{text[:head]}\n{left_out}\n{text[len(text) - tail :]}"


def fenced(template: str, values: Mapping[str, str]) -> Message:
    """`template` filled in, as a user message; {mark} is what none of the values can contain."""
    mark = f"data-{content_hash(dict(values), 8)}"
    return {"role": "user", "content": fill(template, {**values, "mark": mark})}


def readable(finish: Finish, truncated: Truncated) -> bool:
    """Whether a judgement that ended so is to be read."""
    return finish != "length" or truncated == "read"


def last(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of the last line of `text` that `pattern` matches.

    None where no line does, where that line matches twice, or without its first group: a verdict
    in another form is none, and does not leave the word to an earlier line.
    """
    hits = [found for line in text.splitlines() if (found := list(pattern.finditer(line)))]
    return hits[-1][0][1] if hits and len(hits[-1]) == 1 else None


def final_object(text: str) -> dict[str, Any] | None:
    """The JSON object that ends a text, from the start of a line; a code fence may be around it.

    None where one before it is broken, for it may be a quotation in that; and where a key of it
    stands twice.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_each_once)
    text = text.strip().removesuffix("```").rstrip()
    found, end = None, 0
    while opened := _OPENED.search(text, end):
        try:
            found, end = decoder.raw_decode(text, opened.end() - 1)
        except (ValueError, RecursionError):
            return None
    return found if end == len(text) else None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def score_reader(pattern: re.Pattern[str], highest: float) -> Callable[[str], float | None]:
    """Reads the score that a judgement ends in: the number in the last line that matches.

    None where there is none (`last`), and for what is not from 0 to `highest`.
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
    cut: int = 0
    """How many of `texts` were cut off, and not read for it."""

    @property
    def unread(self) -> str:
        """How many answers were cut off, in words, or ''."""
        return f"{self.cut} of {len(self.texts)} answers cut off at max_tokens" if self.cut else ""

    def verdict(self, sample: Sample, reward: float | None, **fields: Any) -> Verdict:
        """A verdict that carries the cost; without a reward it is `error` or `unparsed`."""
        said = "\n\n".join(filter(None, (self.unread, *self.texts[:1])))
        fields.setdefault("rationale", self.error or said)
        if reward is None:
            fields.setdefault("status", "error" if self.error else "unparsed")
        return sample.verdict(reward, cost_usd=self.cost_usd, **fields)


def ask(
    caller: Caller,
    calls: Sequence[Call],
    read: Callable[[str], T | None],
    options: DrawnOptions,
    reminder: str,
) -> list[Answers[T]]:
    """What could be read of each call's answers, in order; unreadable ones are left out.

    A call of which nothing could be read is made again, up to `retries` times, with `reminder` at
    the end of its message. An answer that was cut off is not read, unless the options say so: its
    end is missing, where the verdict stands.
    """
    found: list[Answers[T]] = [Answers() for _ in calls]
    owed = list(range(len(calls)))
    for attempt in range(options.retries + 1):
        again = [_reminded(calls[i], reminder) if attempt else calls[i] for i in owed]
        for i, reply in zip(owed, caller.complete(again), strict=True):
            ended = zip(reply.texts, reply.finishes, strict=True)
            whole = [text for text, finish in ended if readable(finish, options.truncated)]
            found[i] = Answers(
                tuple(value for value in map(read, whole) if value is not None),
                (*found[i].texts, *reply.texts),
                reply.error,
                found[i].cost_usd + reply.cost_usd,
                found[i].cut + len(reply.texts) - len(whole),
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
