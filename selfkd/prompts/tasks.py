"""Draws prompts from the tasks of reasoning-gym, checked before the run starts."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from selfkd.errors import UsageError
from selfkd.prompts.files import Row

PREFIX = "reasoning_gym:"
COLUMNS = ("question", "answer", "reasoning_gym")
RESERVED = {"seed": "the run's seed", "size": "prompts.per_round"}
REFUSALS = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What tasks are seen to raise for options that they cannot work with."""


class Task:
    """A reasoning-gym task with checked options; every seed gives other entries."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.options = dict(options)
        registered = _registered()
        if name not in registered:
            close = difflib.get_close_matches(name, registered, 1)
            raise UsageError(
                f"reasoning_gym has no task {name!r}",
                where="prompts.source",
                remedy=f"did you mean {close[0]!r}?" if close else "see reasoning_gym's list",
            )
        self._check_names([f.name for f in fields(registered[name])])
        self._check_values()

    @property
    def identity(self) -> list[Any]:
        """What decides the entries besides the seed."""
        return [PREFIX + self.name, version("reasoning-gym"), self.options]

    def rows(self, seed: int, size: int) -> Iterator[Row]:
        """`size` rows of columns `question`, `answer` and `reasoning_gym`.

        The last holds `{"task", "options", "entry"}`: all that the task's own scoring asks for.
        """
        import reasoning_gym

        tasks = reasoning_gym.create_dataset(self.name, seed=seed, size=size, **self.options)
        for i in range(size):
            entry = tasks[i]
            own = {"task": self.name, "options": self.options, "entry": entry}
            values = (entry["question"], entry["answer"], own)
            yield Row(dict(zip(COLUMNS, values, strict=True)), f"{PREFIX}{self.name}:{i + 1}")

    def _check_names(self, known: list[str]) -> None:
        for key, value in self.options.items():
            if key in RESERVED:
                raise UsageError(
                    f"{key}={value!r} is not an option of prompts",
                    where=f"prompts.options.{key}",
                    remedy=f"remove it: {RESERVED[key]} decides",
                )
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                listed = ", ".join(k for k in known if k not in RESERVED)
                raise UsageError(
                    f"task {self.name!r} has no option {key!r} (given: {value!r})",
                    where=f"prompts.options.{key}",
                    remedy=f"did you mean {close[0]!r}?" if close else f"known options: {listed}",
                )

    def _check_values(self) -> None:
        try:
            next(self.rows(seed=0, size=1))
        except REFUSALS as error:
            blamed = {k: v for k, v in self.options.items() if k in str(error)} or self.options
            given = ", ".join(f"{k}={v!r}" for k, v in blamed.items()) or "none"
            raise UsageError(
                f"task {self.name!r} refuses its options: {error} (given: {given})",
                where="prompts.options",
                remedy="change the option",
            ) from error


def _registered() -> dict[str, type]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError(
            "reasoning-gym is not installed",
            where="prompts.source",
            remedy="install selfkd[tasks], or give a file",
        ) from error
    return {name: config for name, (_, config) in DATASETS.items()}
