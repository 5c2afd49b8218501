"""Prompts from a taskset of verifiers (0.4 and on): a row a task, which its judge finds again."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from selfkd.errors import DataError, UsageError
from selfkd.prompts.files import Item, Row


class Taskset:
    """A taskset by its id, such as the name of an installed package, with options."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        """UsageError where there is no such taskset, or it refuses the options."""
        self.name = name
        self.options = dict(options)
        try:
            import verifiers.v1 as vf

            config = vf.taskset_config_type(name).model_validate({"id": name, **options})
            self._taskset = vf.load_taskset(config)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UsageError(
                f"there is no taskset {name!r} to use: {str(error).splitlines()[0]}",
                where="prompts.source",
                remedy="install the package that has it, and verifiers 0.4 or later",
            ) from error

    @staticmethod
    def of(name: str, options: Mapping[str, Any]) -> "Taskset":
        """The taskset, loaded once in a process."""
        return _loaded(name, json.dumps(options, sort_keys=True))

    def rows(self) -> Iterator[Item]:
        """Rows of columns `prompt`, `answer` (where the task has one) and `verifiers`."""
        if not self._taskset.bounded:
            raise UsageError(
                f"taskset {self.name!r} has no end",
                where="prompts.source",
                remedy="write its tasks to a file and give that",
            )
        for number, task in enumerate(self._taskset, 1):
            yield self._row(task.data, f"verifiers:{self.name}:{number}")

    def task(self, data: Mapping[str, Any]) -> Any:
        """The task that a row was made of."""
        kind = self._taskset.task_type()
        return kind(kind.data_type().model_validate(data), self._taskset.config.task)

    def _row(self, data: Any, where: str) -> Item:
        messages = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        if isinstance(data.prompt, str):
            messages.append({"role": "user", "content": data.prompt})
        else:
            messages += [{"role": m.role, "content": m.content} for m in data.prompt or []]
        if not all(isinstance(m["content"], str) for m in messages):
            return DataError("the prompt is more than text", where=where)
        plain = data.model_dump(mode="json", exclude_none=True)
        own = {"taskset": self.name, "options": self.options, "data": plain}
        answer = getattr(data, "answer", None)
        known = {"answer": str(answer)} if isinstance(answer, str | int | float) else {}
        return Row({"prompt": messages, **known, "verifiers": own}, where)


@functools.lru_cache(maxsize=16)
def _loaded(name: str, options: str) -> Taskset:
    return Taskset(name, json.loads(options))
