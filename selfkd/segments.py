"""A round's training cut where fresh weights reach the sampler."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfkd.errors import UsageError
from selfkd.records import Prompt


@dataclass(frozen=True, slots=True)
class Segment:
    """The optimiser steps between two weight syncs, and the prompts whose samples they use up."""

    round: int
    number: int
    """0 for the first of its round."""
    prompts: tuple[Prompt, ...]
    policy: str
    """Who samples: the policy as it is when the segment begins."""
    first: int
    """Optimiser steps that the round has planned before it."""
    steps: int
    """Its own, at most."""
    total: int
    """Those of the whole round: the learning rate's schedule spans them."""

    @property
    def last(self) -> bool:
        """Whether the round's training ends with it."""
        return self.first + self.steps >= self.total

    @property
    def label(self) -> str:
        """Of its steps. The first has none: its samples are those that the round is measured by."""
        return f"sync-{self.number}" if self.number else ""

    def labelled(self, what: str) -> str:
        """A label for another step of it."""
        return f"{self.label}-{what}" if self.label else what

    @property
    def makes(self) -> str:
        """The policy that it ends in; `round-3+8` is 8 steps on the way to `round-3`."""
        name = f"round-{self.round + 1}"
        return name if self.last else f"{name}+{self.first + self.steps}"


def cut(
    prompts: Sequence[Prompt], *, n: int, batch_size: int, epochs: float, steps_per_sync: int | None
) -> Iterator[tuple[tuple[Prompt, ...], int]]:
    """Prompts and optimiser steps of each segment, `n` samples a prompt; None: one segment.

    A step takes `batch_size` samples, each of which is seen `epochs` times. No segment has more
    than `steps_per_sync` steps; UsageError where the samples of a single prompt need more.
    """

    def steps(count: int) -> int:
        return math.ceil(epochs * math.ceil(count * n / batch_size))

    size = max(1, len(prompts))
    if steps_per_sync is not None:
        if steps(1) > steps_per_sync:
            raise UsageError(
                f"steps_per_sync is {steps_per_sync}, and with train.epochs {epochs:g} the samples "
                f"of a single prompt ({n}, in batches of {batch_size}) take {steps(1)} steps",
                where="steps_per_sync",
                remedy=f"set it to {steps(1)} or more, or lower train.epochs",
            )
        batches = math.floor(steps_per_sync / epochs)
        batches -= math.ceil(epochs * batches) > steps_per_sync  # a product rounded up
        size = max(1, batches * batch_size // n)
    for at in range(0, len(prompts), size):
        part = tuple(prompts[at : at + size])
        yield part, steps(len(part))
