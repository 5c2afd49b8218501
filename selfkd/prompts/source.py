"""A run's prompts: which are trained on in which round, and which are held out.

Held-out prompts never occur among training prompts, compared by normalised text. What is drawn is
a pure function of seed and round.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from selfkd.errors import DataError, UsageError
from selfkd.prompts.options import PromptOptions
from selfkd.prompts.pool import Pool, read_pool
from selfkd.prompts.shape import Shape, text_key
from selfkd.prompts.tasks import COLUMNS, PREFIX, Task
from selfkd.records import Prompt, content_hash

HELDOUT = 100
"""Held-out prompts where the config does not say: of a task, and at most of a file."""
TASK_PER_ROUND = 64
ATTEMPTS = 20
"""Entries of a task that are looked at for each prompt asked for."""


class PromptSource(ABC):
    """Training prompts by round, and held-out prompts that never occur among them."""

    fingerprint: str
    """Changes with the content, the options and the seed; not with the place of a file."""

    @abstractmethod
    def train(self, round: int) -> list[Prompt]:
        """The prompts of a round, each once."""

    @abstractmethod
    def known(self) -> list[Prompt]:
        """Training prompts that can be checked before the first round."""

    @abstractmethod
    def heldout(self) -> list[Prompt]:
        """The prompts to measure on, the same in every round."""

    @property
    @abstractmethod
    def report(self) -> dict[str, int]:
        """Counts of what did not become a prompt."""


def open_prompts(options: PromptOptions, *, seed: int, base: Path) -> PromptSource:
    """Open and check the prompts that a config names; paths are relative to `base`.

    Raises UsageError for options that do not fit, DataError for content that cannot be used.
    """
    heldout = _own_heldout(options, base)
    if options.source.startswith(PREFIX):
        return TaskPrompts(options, seed=seed, heldout=heldout)
    pool = read_pool(
        options.source,
        base,
        options,
        dataset={k: v for k, v in options.options.items() if k != "heldout_split"},
        limit=options.limit,
    )
    return FixedPrompts(options, pool, seed=seed, heldout=heldout)


def require_answers(prompts: Iterable[Prompt], judge: str) -> None:
    """Refuse prompts without a reference answer, for a judge that compares with it."""
    without = [p.id for p in prompts if p.answer is None]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        raise DataError(
            f"judge {judge!r} needs the answers of prompts, and these have none: "
            f"{', '.join(without[:5])}{more}",
            where="prompts",
            remedy="add the answers, set prompts.answer_column, or take another judge",
        )


class FixedPrompts(PromptSource):
    """A file or data set: all of it each round, or seeded slices of it."""

    def __init__(
        self, options: PromptOptions, pool: Pool, *, seed: int, heldout: Pool | None
    ) -> None:
        pools = [pool, heldout] if heldout else [pool]
        self._heldout = heldout.prompts if heldout else _split_off(pool, options.heldout, seed)
        self._train = _without(pool.prompts, self._heldout)
        expected = len(pool.prompts) - (0 if heldout else len(self._heldout))
        self._report = {
            "duplicates": sum(p.duplicates for p in pools),
            "bad_rows": sum(p.bad_rows for p in pools),
            "overlap": expected - len(self._train),
        }
        if heldout and options.overlap == "error" and self._report["overlap"]:
            raise _overlapping(self._report["overlap"], heldout.source)
        if not self._train:
            raise _nothing_left(pool, len(self._heldout))
        self._order = np.random.default_rng([seed, 1]).permutation(len(self._train))
        self._per_round = min(options.per_round or len(self._train), len(self._train))
        self._fresh = options.fresh
        content = [[p.id, p.columns] for p in (*self._train, *self._heldout)]
        self.fingerprint = _fingerprint(options, seed, len(self._train), content)

    def train(self, round: int) -> list[Prompt]:
        """All prompts in the order of the file, or the round's slice of a shuffled order."""
        count = len(self._train)
        if self._per_round == count:
            return list(self._train)
        first = round * self._per_round if self._fresh else 0
        return [self._train[self._order[(first + i) % count]] for i in range(self._per_round)]

    def known(self) -> list[Prompt]:
        """All prompts that any round may take."""
        return list(self._train)

    def heldout(self) -> list[Prompt]:
        """The prompts that were split off, or those of a source of their own."""
        return list(self._heldout)

    @property
    def report(self) -> dict[str, int]:
        """`duplicates` and `bad_rows` of the files, and `overlap`: copies of held-out prompts."""
        return dict(self._report)


class TaskPrompts(PromptSource):
    """A reasoning-gym task: new prompts each round, or the first round's again and again."""

    def __init__(self, options: PromptOptions, *, seed: int, heldout: Pool | None) -> None:
        if options.limit is not None:
            raise UsageError(
                "limit is for files and data sets",
                where="prompts.limit",
                remedy="set prompts.per_round instead",
            )
        self._task = Task(options.source.removeprefix(PREFIX), options.options)
        self._shape = Shape.of(options, COLUMNS, options.source)
        self._seed = seed
        self._fresh = options.fresh
        self._per_round = options.per_round or TASK_PER_ROUND
        self._bad_rows = heldout.bad_rows if heldout else 0
        self._missing: dict[str, int] = {}
        count = HELDOUT if options.heldout is None else options.heldout
        self._heldout = heldout.prompts if heldout else self._draw("heldout", count, set())
        self._taken = {text_key(p) for p in self._heldout}
        held = [p.id for p in self._heldout]
        self.fingerprint = _fingerprint(options, seed, self._task.identity, held)

    def train(self, round: int) -> list[Prompt]:
        """`per_round` distinct prompts, none held out, or as many as the task can give."""
        draw = f"train-{round if self._fresh else 0}"
        prompts = self._draw(draw, self._per_round, self._taken)
        if not prompts:
            raise DataError(
                f"0 prompts: all that {self._task.name!r} gives is held out",
                where="prompts",
                remedy="lower prompts.heldout, or set options of the task that give more",
            )
        return prompts

    def known(self) -> list[Prompt]:
        """Those of the first round; a task gives all its rows the same columns."""
        return self.train(0)

    def heldout(self) -> list[Prompt]:
        """Drawn from the task under a seed of their own, or those of a source of their own."""
        return list(self._heldout)

    @property
    def report(self) -> dict[str, int]:
        """How many prompts the draws so far are short of: `missing`."""
        return {"bad_rows": self._bad_rows, "missing": sum(self._missing.values())}

    def _draw(self, name: str, count: int, taken: set[str]) -> list[Prompt]:
        seed = int(content_hash([self._seed, name], 7), 16)
        found: dict[str, Prompt] = {}
        for row in self._task.rows(seed, count * ATTEMPTS) if count else ():
            if len(found) == count:
                break
            prompt = self._shape.prompt(row)
            if (key := text_key(prompt)) not in taken:
                found.setdefault(key, prompt)
        self._missing[name] = count - len(found)
        return list(found.values())


def _own_heldout(options: PromptOptions, base: Path) -> Pool | None:
    """Held-out prompts that have a source or split of their own."""
    source, dataset = options.heldout_source, {}
    if source is None and not options.source.startswith(PREFIX):
        dataset = dict(options.options)
        dataset["split"] = dataset.pop("heldout_split", None)
        source = options.source if dataset["split"] is not None else None
    if source is None:
        return None
    if source.startswith(PREFIX):
        raise UsageError(
            "heldout_source is a file or data set",
            where="prompts.heldout_source",
            remedy="set prompts.heldout to hold out prompts of the task in prompts.source",
        )
    return read_pool(source, base, options, dataset=dataset, limit=options.heldout)


def _split_off(pool: Pool, count: int | None, seed: int) -> list[Prompt]:
    """A seeded choice of `count` prompts, in the order of the file."""
    if count is None:
        count = min(HELDOUT, len(pool.prompts) // 10)
    order = np.random.default_rng([seed, 0]).permutation(len(pool.prompts))
    return [pool.prompts[i] for i in sorted(order[:count])]


def _without(prompts: Iterable[Prompt], heldout: Iterable[Prompt]) -> list[Prompt]:
    taken = {text_key(p) for p in heldout}
    return [p for p in prompts if text_key(p) not in taken]


def _overlapping(count: int, source: str) -> DataError:
    return DataError(
        f"{count} training prompts are also held out",
        where=source,
        remedy="remove them from one of the two, or set prompts.overlap=exclude",
    )


def _nothing_left(pool: Pool, heldout: int) -> DataError:
    return DataError(
        f"no prompt is left to train on: {len(pool.prompts)} were read, {heldout} are held out",
        where=pool.source,
        remedy="give more prompts or lower prompts.heldout",
    )


def _fingerprint(options: PromptOptions, seed: int, *content: Any) -> str:
    # What skip_bad leaves out shows in the content.
    settings = options.model_dump(exclude={"source", "heldout_source", "skip_bad"})
    return content_hash([settings, seed, *content])
