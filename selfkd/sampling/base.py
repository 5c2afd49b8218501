"""What the engine asks of whatever completes prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from selfkd.options import Options
from selfkd.records import Finish


class Sampling(Options):
    """How completions are drawn. Temperature 0 is greedy."""

    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    """Softmax temperature; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling mass."""
    top_k: int = Field(0, ge=0)
    """Sample among the k likeliest tokens; 0 means all."""
    max_tokens: int = Field(256, ge=1)
    """Longest completion, in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""


@dataclass(frozen=True, slots=True)
class Request:
    """A tokenised prompt to be completed `n` times."""

    id: str
    prompt_tokens: tuple[int, ...]
    n: int = 1


@dataclass(frozen=True, slots=True)
class Weighing:
    """A tokenised prompt, and continuations of at least one token whose log-probabilities are
    wanted."""

    id: str
    prompt_tokens: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def rows(self) -> dict[tuple[int, ...], list[int]]:
        """What a model must read, and which continuations each row settles.

        Continuations that differ in their last token only share a row.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, tokens in enumerate(self.continuations):
            rows.setdefault((*self.prompt_tokens, *tokens[:-1]), []).append(index)
        return rows


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is asked for at once: completions drawn alike, or continuations weighed."""

    requests: tuple[Request, ...] | tuple[Weighing, ...]
    sampling: Sampling | None = None
    """How completions are drawn; a weighing draws nothing."""
    schema: str | None = None
    """JSON schema, as text, that completions are held to by an engine that can."""
    urgent: bool = False
    """Before what is not: judging must not wait until all is sampled."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion; `tokens` includes the end-of-sequence token if the model wrote it."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    logprob: float | None = None


REFUSED = Completion("", (), "error")
"""What an engine gives for a prompt that leaves no room for an answer."""


Answer = list[Completion] | list[float]
"""The completions of a request, or the log-probabilities of a weighing's continuations (nats, each
summed over its tokens). A weighing that does not fit the context is answered with an empty list."""


class Engine(Protocol):
    """A model that completes prompts and can change its weights.

    One engine lives in one thread of one actor process for the whole run (`Desk`). `policy` names
    the weights it holds.
    """

    policy: str
    context: int
    """Longest prompt plus completion, tokens."""
    structured: bool
    """Whether completions are held to the schema of their work."""

    @property
    def busy(self) -> bool:
        """Whether there is work left."""
        ...

    def add(self, work: Work) -> None:
        """Take on work; ids of its requests are unique among all that is in hand.

        A prompt that is too long is answered with `REFUSED`; the others go on.
        """
        ...

    def step(self) -> list[tuple[str, Answer]]:
        """Work on for a moment; `(request id, answer)` of what got done by it."""
        ...

    def drop(self, ids: Iterable[str]) -> None:
        """Give up these requests: nobody waits for them any more."""
        ...

    def load(self, policy: str, path: str) -> None:
        """Replace the weights by those of the HF model directory `path` (same architecture).

        Raises DataError for files that do not fit; the old weights are then still held. Only while
        the engine is not busy, as for the two methods below.
        """
        ...

    def sleep(self) -> bool:
        """Give memory back and hold no policy, until `load`; False where that is impossible."""
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it; entry 0 of each list is 0.0."""
        ...

    def last_logprobs(self, sequence: Sequence[int], count: int) -> list[float]:
        """Log-probabilities of the last `count` tokens, each computed as in a completion: what the
        engine has cached of the tokens before it takes part."""
        ...
