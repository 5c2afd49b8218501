"""What the engine asks of whatever completes prompts."""

from collections.abc import Iterator, Sequence
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
class Completion:
    """One completion; `tokens` includes the end-of-sequence token if the model wrote it."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    logprob: float | None = None


REFUSED = Completion("", (), "error")
"""What an engine gives for a prompt that leaves no room for an answer."""


class Engine(Protocol):
    """A model that completes prompts and can change its weights.

    One engine lives in one actor process for the whole run. `policy` names the weights it holds.
    """

    policy: str
    context: int
    """Longest prompt plus completion, tokens."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[str, list[Completion]]]:
        """Yield `(request id, n completions)` as requests finish, in any order.

        A prompt that is too long is answered with `REFUSED`; the others go on.
        """
        ...

    def load(self, policy: str, path: str) -> None:
        """Replace the weights by those of the HF model directory `path` (same architecture).

        Raises DataError for files that do not fit; the old weights are then still held.
        """
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it; entry 0 of each list is 0.0."""
        ...

    def last_logprobs(self, sequence: Sequence[int], count: int) -> list[float]:
        """Log-probabilities of the last `count` tokens, each computed as in a completion: what the
        engine has cached of the tokens before it takes part."""
        ...
