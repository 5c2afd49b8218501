"""Samples on their way to a judge, and what it says of them on the way back.

A round may have samples by the million, so they cross as columns: the driver makes no object of
any, and the judge's process one at a time.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from selfkd.records import (
    SAMPLES,
    VERDICTS,
    Prompt,
    Sample,
    column_of,
    samples_table,
    values_of,
)

OWN = tuple(name for name in SAMPLES.names if name != "prompt_id")
"""Fields of a sample without its prompt, in the order of `Sample`."""

Said = tuple[float | None, str, str | None, str, float]
"""Reward, status, answer, rationale and cost of a verdict."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What crosses to a judge's process."""

    table: pa.Table
    """Rows of `SAMPLES`."""
    prompts: Sequence[bytes]
    """Pickled, each once."""
    places: Sequence[int]
    """Which of them each row answers."""


class Batch:
    """Samples that are judged together, and the prompt of each."""

    def __init__(self, table: pa.Table, prompts: Sequence[Prompt]) -> None:
        """`table` has rows of `SAMPLES`, `prompts` one for each."""
        self.table = table
        self.prompts = prompts

    @classmethod
    def read(cls, table: pa.Table, prompts: Mapping[str, Prompt]) -> "Batch":
        """Rows of `SAMPLES`; `prompts` by id."""
        return cls(table, [prompts[id] for id in table.column("prompt_id").to_pylist()])

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Batch":
        """Samples that are at hand as objects."""
        return cls(samples_table(samples), [s.prompt for s in samples])

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def ids(self) -> list[str]:
        """Id of each sample."""
        return self.table.column("id").to_pylist()

    @cached_property
    def samples(self) -> list[Sample]:
        """All of them as objects."""
        rows = zip(*(values_of(self.table.column(name)) for name in OWN), strict=True)
        pairs = zip(rows, self.prompts, strict=True)
        return [Sample(id, prompt, *rest) for (id, *rest), prompt in pairs]

    def take(self, places: Sequence[int]) -> "Batch":
        """The samples at these places."""
        if list(places) == list(range(len(self))):
            return self
        table = self.table.take(pa.array(places, type=pa.int64()))
        return Batch(table, [self.prompts[i] for i in places])

    def renamed(self, suffix: str) -> "Batch":
        """The same under names by which nothing is on record."""
        ids = pa.array([f"{id}{suffix}" for id in self.ids], type=pa.string())
        return Batch(self.table.set_column(0, "id", ids), self.prompts)

    def payload(self) -> Payload:
        """The samples for another process."""
        known: dict[int, int] = {}
        places = [known.setdefault(id(prompt), len(known)) for prompt in self.prompts]
        first = dict(zip(places, self.prompts, strict=True))
        return Payload(self.table, [pickle.dumps(p) for p in first.values()], places)

    def verdicts(self, judge: str, said: Sequence[Said]) -> pa.Table:
        """What `judge` said of each, as rows of `VERDICTS`."""
        own = [self.table.column("id"), self.table.column("prompt_id"), pa.repeat(judge, len(self))]
        fields = VERDICTS.names[len(own) :]
        columns = zip(*said, strict=True) if said else [()] * len(fields)
        arrays = [
            column_of(values, VERDICTS.field(name).type)
            for name, values in zip(fields, columns, strict=True)
        ]
        return pa.Table.from_arrays([*own, *arrays], schema=VERDICTS)


class Copies:
    """Samples that are new objects each time one looks: what is done to one reaches no other."""

    def __init__(
        self, rows: Sequence[tuple[Any, ...]], prompt_ids: Sequence[str], prompts: Sequence[bytes]
    ) -> None:
        """`rows` are a sample's fields but the prompt, which can be changed and comes pickled."""
        self._rows = rows
        self.prompt_ids = prompt_ids
        self._prompts = prompts

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Copies":
        """Of samples at hand as objects."""
        rows = [tuple(getattr(s, name) for name in OWN) for s in samples]
        return cls(rows, [s.prompt.id for s in samples], [pickle.dumps(s.prompt) for s in samples])

    @classmethod
    def read(cls, payload: Payload) -> "Copies":
        """Of what came from another process."""
        columns = [values_of(payload.table.column(name)) for name in OWN]
        prompts = [payload.prompts[place] for place in payload.places]
        ids = payload.table.column("prompt_id").to_pylist()
        return cls(list(zip(*columns, strict=True)), ids, prompts)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        id, *rest = self._rows[index]
        return Sample(id, pickle.loads(self._prompts[index]), *rest)
