"""Views: under which messages a prompt is completed, judged or trained on.

A view is a pure function from a prompt to messages, known by a name that changes with its texts.
`a | b` applies `a`, then `b`: `fewshot(shots) | hint()` shows worked examples, then the answer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selfkd.errors import DataError, UsageError
from selfkd.records import Message, Prompt, content_hash

Messages = tuple[Message, ...]

HINT = "\n\n(Hint: the answer is {answer}. Explain how to get there.)"


@dataclass(frozen=True, slots=True)
class View:
    """A named way to show a prompt; `rewrite(prompt, messages)` returns new messages."""

    name: str
    rewrite: Callable[[Prompt, Messages], Messages]

    def __call__(self, prompt: Prompt) -> Messages:
        """The messages of `prompt` under this view."""
        return self.rewrite(prompt, prompt.messages)

    def __or__(self, other: "View") -> "View":
        if self is plain:
            return other
        if other is plain:
            return self
        return View(
            f"{self.name} | {other.name}",
            lambda prompt, messages: other.rewrite(prompt, self.rewrite(prompt, messages)),
        )


plain = View("plain", lambda prompt, messages: messages)
"""The prompt as it is: what a policy is trained under unless a loop says otherwise."""


def system(text: str) -> View:
    """`text` as the system message, in place of the prompt's own."""

    def rewrite(prompt: Prompt, messages: Messages) -> Messages:
        _, rest = _split_system(messages)
        return ({"role": "system", "content": text}, *rest)

    return View(f"system({_digest(text)})", rewrite)


def principles(text: str) -> View:
    """`text` in front of the prompt's own system message (Self-Align's rules)."""

    def rewrite(prompt: Prompt, messages: Messages) -> Messages:
        own, rest = _split_system(messages)
        content = "\n\n".join([text, *(m["content"] for m in own)])
        return ({"role": "system", "content": content}, *rest)

    return View(f"principles({_digest(text)})", rewrite)


def fewshot(shots: Sequence[tuple[str, str]]) -> View:
    """Worked examples `(user, assistant)` as earlier turns, after a system message.

    Without any shot this is `plain`.
    """
    if not shots:
        return plain
    turns = tuple(
        {"role": role, "content": content}
        for shot in shots
        for role, content in zip(("user", "assistant"), shot, strict=True)
    )

    def rewrite(prompt: Prompt, messages: Messages) -> Messages:
        own, rest = _split_system(messages)
        return (*own, *turns, *rest)

    return View(f"fewshot({len(shots)}, {_digest(turns)})", rewrite)


def hint(template: str = HINT) -> View:
    """The reference answer at the end of the last user message (STaR's rationalisation).

    `template` is added as it stands, with `{answer}` filled in; it brings its own line breaks.
    """
    if placeholders(template) != {"answer"}:
        raise UsageError(
            f"the hint {template!r} must name {{answer}} and nothing else in braces",
            remedy="write {answer} where the answer goes, and double any other brace",
        )

    def rewrite(prompt: Prompt, messages: Messages) -> Messages:
        if prompt.answer is None:
            raise DataError(
                f"prompt {prompt.id} has no answer to hint at",
                remedy="add an answer to every prompt, or go without hints",
            )
        text = fill(template, {"answer": prompt.answer})
        return _edit_question(prompt, messages, lambda question: question + text)

    return View(f"hint({_digest(template)})", rewrite)


def context(template: str) -> View:
    """Columns of the prompt at the end of the last user message: what is known only in hindsight.

    A demonstration, a reference solution, feedback: privileged context for a teacher (SDFT, OPSD,
    SDPO). `template` is added as it stands, with {answer} and {any other column} filled in.
    """
    text = from_columns(template)
    if not placeholders(template):
        raise UsageError(
            f"the context {template!r} names no column",
            remedy="write {answer} or another column where it goes; `affix` adds a fixed text",
        )

    def rewrite(prompt: Prompt, messages: Messages) -> Messages:
        added = text(prompt)
        return _edit_question(prompt, messages, lambda question: question + added)

    return View(f"context({_digest(template)})", rewrite)


def affix(text: str, where: Literal["start", "end"] = "end") -> View:
    """`text`, as it stands, at the start or end of the last user message (RLCD's two sides)."""

    def rewrite(prompt: Prompt, messages: Messages) -> Messages:
        def edit(question: str) -> str:
            return question + text if where == "end" else text + question

        return _edit_question(prompt, messages, edit)

    return View(f"affix({where}, {_digest(text)})", rewrite)


_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def placeholders(template: str) -> set[str]:
    """Names that `template` has in single braces; doubled braces stand for themselves."""
    return {match[1] for match in _BRACES.finditer(template) if match[1]}


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with its placeholders replaced in one pass: braces in values stay as they are."""
    return _BRACES.sub(lambda match: values[match[1]] if match[1] else match[0][0], template)


def from_columns(template: str) -> Callable[[Prompt], str]:
    """`template` with {answer} and {any other column} of a prompt filled in, as a function of it.

    Raises DataError for a prompt without one of them.
    """

    def text(prompt: Prompt) -> str:
        values = {**prompt.columns, "answer": prompt.answer}
        for name in sorted(placeholders(template)):
            if values.get(name) in (None, ""):
                raise DataError(
                    f"prompt {prompt.id} has no {name!r} to fill in {template!r}",
                    remedy="name columns that every prompt has",
                )
        return fill(template, {name: str(value) for name, value in values.items()})

    return text


def _split_system(messages: Messages) -> tuple[Messages, Messages]:
    """Leading system messages, and the rest."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return messages[:count], messages[count:]


def _edit_question(prompt: Prompt, messages: Messages, edit: Callable[[str], str]) -> Messages:
    """`messages` with the last user message changed by `edit`."""
    for i in range(len(messages) - 1, -1, -1):
        if messages[i]["role"] == "user":
            edited = {**messages[i], "content": edit(messages[i]["content"])}
            return (*messages[:i], edited, *messages[i + 1 :])
    raise DataError(f"prompt {prompt.id} has no user message", remedy="add one")


def _digest(texts: object) -> str:
    return content_hash(texts, 8)
