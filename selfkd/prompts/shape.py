"""Makes prompts out of rows: which column is the prompt, which the answer, what travels along."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfkd.errors import DataError, UsageError
from selfkd.prompts.files import Row
from selfkd.prompts.options import PromptOptions
from selfkd.records import Message, Prompt
from selfkd.views import fill, placeholders

PROMPT_COLUMNS = ("prompt", "messages", "question")
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of one source become prompts."""

    prompt_column: str | None
    """None where a template makes the user message."""
    answer_column: str | None
    template: str | None
    system: str | None

    @classmethod
    def of(cls, options: PromptOptions, columns: Sequence[str], where: str) -> "Shape":
        """Match the options to the `columns` found at `where`, or say which are missing."""
        answer = options.answer_column or ("answer" if "answer" in columns else None)
        prompt = options.prompt_column
        if prompt is None and options.template is None:
            prompt = next((c for c in PROMPT_COLUMNS if c in columns), None)
            if prompt is None:
                wanted = "no column named " + ", ".join(PROMPT_COLUMNS)
                raise _no_column(wanted, "prompt_column", columns, where)
        for name, setting in ((prompt, "prompt_column"), (answer, "answer_column")):
            if name is not None and name not in columns:
                raise _no_column(f"no column {name!r}", setting, columns, where)
        for name in sorted(placeholders(options.template or "") - set(columns)):
            raise _no_column(f"no column {name!r}", "template", columns, where)
        return cls(
            None if options.template is not None else prompt,
            answer,
            options.template,
            options.system,
        )

    def prompt(self, row: Row) -> Prompt:
        """The prompt of one row; raises DataError where the row does not hold one."""
        messages = self._messages(row)
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        answer = row.values.get(self.answer_column) if self.answer_column else None
        own = (self.prompt_column, self.answer_column)
        columns = {k: _json_value(v) for k, v in row.values.items() if k not in own}
        prompt = Prompt.of(messages, None if answer is None else _text(answer))
        return replace(prompt, columns=columns)

    def _messages(self, row: Row) -> list[Message]:
        if self.template is not None:
            names = placeholders(self.template)
            missing = [name for name in names if row.values.get(name) is None]
            if missing:
                raise _bad_row(f"no value of {', '.join(sorted(missing))} for the template", row)
            values = {name: _text(row.values[name]) for name in names}
            return [{"role": "user", "content": fill(self.template, values)}]
        value = row.values.get(self.prompt_column or "")
        if isinstance(value, str) and value.strip():
            return [{"role": "user", "content": value}]
        if isinstance(value, list | tuple) and value:
            return _chat(value, row)
        raise _bad_row(f"{self.prompt_column} is neither text nor chat messages", row)


def text_key(prompt: Prompt) -> str:
    """What counts as the same prompt across training and held-out: roles and normalised text."""
    parts = (f"{m['role']}: {m['content']}" for m in prompt.messages)
    return " ".join(unicodedata.normalize("NFKC", "\n".join(parts)).split())


def _chat(value: Sequence[Any], row: Row) -> list[Message]:
    messages = []
    for m in value:
        if not isinstance(m, Mapping) or not isinstance(m.get("content"), str):
            raise _bad_row('a chat message is not {"role": text, "content": text}', row)
        if m.get("role") not in ROLES:
            raise _bad_row(f"unknown role {m.get('role')!r}; known: {', '.join(ROLES)}", row)
        messages.append({"role": m["role"], "content": m["content"]})
    if messages[-1]["role"] != "user":
        raise _bad_row("the chat does not end with a user message", row)
    return messages


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_json_value(value), ensure_ascii=False)


def _json_value(value: Any) -> Any:
    """`value` as JSON would give it back, whatever library it comes from."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((_json_value(v) for v in value), key=str)
    return _json_value(value.tolist()) if hasattr(value, "tolist") else str(value)


def _bad_row(message: str, row: Row) -> DataError:
    return DataError(message, where=row.where, remedy="correct the row, or pass --skip-bad")


def _no_column(message: str, setting: str, columns: Sequence[str], where: str) -> UsageError:
    found = ", ".join(columns) or "none"
    return UsageError(
        f"{message}; columns found: {found}", where=where, remedy=f"set prompts.{setting} to fit"
    )
