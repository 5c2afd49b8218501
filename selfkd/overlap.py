"""The next round is sampled while the trainer works (`engine.overlap`).

A loop asks for a round's samples after the training before it, but it asks as it did in the round
before. So their step is opened when a training begins, whether it then runs or was recorded, and
sampled meanwhile, by the policy that there is: the one before the newest. The step records that it
is one round behind; everything else about the round is as it would be.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from selfkd.errors import UsageError
from selfkd.sampling.base import Sampling
from selfkd.tables import Samples
from selfkd.views import View

if TYPE_CHECKING:
    from selfkd.round import Round
    from selfkd.run import Run


@dataclass(frozen=True, slots=True)
class Asked:
    """What a loop asks of `generate` for the prompts of a round."""

    n: int
    sampling: Sampling | None
    view_name: str
    view: View = field(compare=False)

    def __str__(self) -> str:
        return f"{self.n} samples a prompt under view {self.view_name}"


class Overlap:
    """What was asked in each round, and what was begun ahead of being asked."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._asked: dict[int, Asked] = {}
        self._begun: dict[int, Samples] = {}

    def taken(self, round: "Round", asked: Asked) -> Samples | None:
        """The samples of a round, if they were begun before the loop asked for them.

        UsageError where it asks for something else than in the round before.
        """
        foreseen = self._asked.get(round.number - 1)
        self._asked[round.number] = asked
        samples = self._begun.pop(round.number, None)
        if samples is None:
            return None
        if foreseen != asked:
            raise UsageError(
                f"round {round.number} was sampled ahead ({foreseen}), and the loop asks for "
                f"other samples ({asked})",
                where="engine.overlap",
                remedy="set engine.overlap=false for a loop that changes what it asks",
            )
        self._run.owed.append(samples)
        return samples

    def samplers(self) -> set[str]:
        """The policies that still have to make what was begun ahead."""
        return {s.policy for s in self._begun.values() if not s.step.finished}

    @contextlib.contextmanager
    def during(self, round: "Round", *, trains: bool) -> Iterator[None]:
        """Around the training of a round: opens the samples of the next one, and makes them
        meanwhile where there is a training to wait for."""
        asked = self._asked.get(round.number)
        if asked is None or round.number + 1 >= self._run.planned:
            yield
            return
        samples = round.ahead().generate(
            self._run.prompts, n=asked.n, sampling=asked.sampling, view=asked.view
        )
        self._run.owed.remove(samples)
        self._begun[round.number + 1] = samples
        if trains and not samples.step.finished:
            with _beside(samples):
                yield
        else:
            yield


@contextlib.contextmanager
def _beside(samples: Samples) -> Iterator[None]:
    """Make samples in a thread; wait for them in the end, even if what went on meanwhile failed:
    they are recorded, and a stop that was asked for ends the thread too."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            samples.wait()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]
