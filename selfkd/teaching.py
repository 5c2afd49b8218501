"""A teacher that is served: of its distributions only the likeliest tokens can be had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfkd.errors import DataError
from selfkd.records import Sample, Teaching


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher is asked about: at each token of the completion, what would come next?"""

    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]


class ServedTeacher(Protocol):
    """A client of a server that has the policy's tokenizer."""

    name: str
    """Who answers, and with which settings: part of the record, and of what makes it valid."""
    top_k: int
    """How many tokens it tells of each place, at most."""

    def likeliest(self, lessons: Sequence[Lesson]) -> Sequence[Sequence[Mapping[int, float]]]:
        """For each lesson one mapping a completion token: ids of the likeliest tokens at that
        place, given all tokens before it, to their natural log-probabilities at temperature 1.

        The token of the completion itself need not be among them. Raises InfrastructureError where
        the server fails for good.
        """
        ...


def record(
    sample: Sample, places: Sequence[Mapping[int, float]], teacher: ServedTeacher
) -> Teaching:
    """What a teacher said of a sample, each place filled up to `top_k` with id -1.

    Raises DataError that names the sample where it does not fit.
    """
    if len(places) != len(sample.tokens):
        raise _misfit(sample, teacher, f"it told {len(places)} places of {len(sample.tokens)}")
    ids: list[int] = []
    logprobs: list[float] = []
    for place in places:
        told = sorted(place.items(), key=lambda pair: (-pair[1], pair[0]))[: teacher.top_k]
        if not told or any(not logprob <= 1e-3 for _, logprob in told):
            raise _misfit(sample, teacher, "a place has no token, or a log-probability above 0")
        gap = teacher.top_k - len(told)
        ids += [*(token for token, _ in told), *[-1] * gap]
        logprobs += [*(min(logprob, 0.0) for _, logprob in told), *[0.0] * gap]
    return Teaching(sample.id, sample.prompt.id, teacher.name, tuple(ids), tuple(logprobs))


def _misfit(sample: Sample, teacher: ServedTeacher, what: str) -> DataError:
    return DataError(
        f"teacher {teacher.name} on sample {sample.id}: {what}",
        where="teach",
        remedy="it must score the sample's own tokens: check that it has the policy's tokenizer",
    )
