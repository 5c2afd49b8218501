"""How a judge asks a language model: the one protocol under every LLM judge.

A judge that wants a model takes a parameter `caller`. What it is given may be the policy's own
sampler, where its calls share the queue and the weights with generation, or a server. The judge
cannot tell which, and need not.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from selfkd.errors import SelfkdError
from selfkd.records import Finish, Message
from selfkd.sampling.base import Sampling

REFUSAL = "refusal: "
"""How an `error` begins where the model, or a filter before it, would not answer."""


@dataclass(frozen=True, slots=True)
class Call:
    """Text that is wanted: what is asked, and how answers are drawn."""

    about: str
    """Id of the sample that is judged; the answers are recorded under it."""
    messages: tuple[Message, ...]
    sampling: Sampling
    n: int = 1
    """Answers to draw, independently."""
    schema: Mapping[str, Any] | None = None
    """JSON schema of the answer. A caller that is not `structured` passes it over, so the messages
    must say the same and the answer must be read with care."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The `n` answers to a call, or `error`: why there are none."""

    texts: tuple[str, ...] = ()
    finishes: tuple[Finish, ...] = ()
    """`stop` or `length` for each text."""
    error: str = ""
    """One line for the verdict's rationale; the sample then has status `error`, or `refused` where
    it begins with `REFUSAL`."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Tokens written, over all answers."""
    cost_usd: float = 0.0
    """What the call cost, whether or not its answers can be used."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Continuations whose log-probabilities are wanted; nothing is drawn."""

    about: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    """What the answer may go on with. None may be the beginning of another."""
    opening: str = ""
    """What the answer already begins with."""


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Log-probabilities of the choices, or `error`: why there are none."""

    logprobs: tuple[float | None, ...] = ()
    """Natural log-probability of each choice, summed over its tokens, given messages and opening.

    Tokens that all of several choices begin with are given as well. None: the caller was not told,
    and it is less likely than those it was told.
    """
    lengths: tuple[int, ...] = ()
    """Tokens that each sum is over; empty where the caller does not know."""
    error: str = ""
    prompt_tokens: int = 0
    cost_usd: float = 0.0


class Caller(Protocol):
    """Answers calls. Both methods block until all are answered, and keep their order.

    A call that cannot be answered says so in its `error`; the others are answered all the same.
    Where no further call can succeed (no money left, no such model) they raise `StopJudging`.
    """

    @property
    def name(self) -> str:
        """Who answers: a policy, or a model on a server."""
        ...

    @property
    def structured(self) -> bool:
        """Whether answers are held to `Call.schema`."""
        ...

    def complete(self, calls: Sequence[Call]) -> list[Reply]:
        """Have answers written."""
        ...

    def weigh(self, choices: Sequence[Choices]) -> list[Likelihoods]:
        """Have continuations scored."""
        ...


class StopJudging(Exception):
    """Raised by a caller to end the judging as a whole: it is no verdict on any sample.

    `error` is what the run then fails or stops with, with its own exit code.
    """

    def __init__(self, error: SelfkdError) -> None:
        super().__init__(error)
        self.error = error


_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """What a caller wraps its waiting in: none of it counts as the judge's own time."""
    global _inside
    with _lock:
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1


def is_waiting() -> bool:
    """Whether any thread of this process waits for answers to its calls."""
    return _inside > 0
