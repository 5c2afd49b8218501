"""How many requests at once: more while the server answers, half as many when it cannot."""

import asyncio
import contextlib
import time
from types import TracebackType

START = 4
"""Requests at once in the beginning, at most."""
BEAT = 0.25
"""Seconds between two looks at whether a pause is over."""


class Pace:
    """A number of places that grows by one for each round of answers and halves on trouble.

    Additive increase, multiplicative decrease, as in TCP (Chiu and Jain 1989). A pause that a
    server asks for holds for all. To be used from one event loop.
    """

    def __init__(self, most: int) -> None:
        self.limit = float(min(START, most))
        """Requests that may be under way."""
        self.running = 0
        self._most = most
        self._until = 0.0
        self._cut = 0.0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> float:
        """Wait for a place and for the end of a pause; when it was taken (monotonic seconds)."""
        async with self._changed:
            while True:
                left = self._until - time.monotonic()
                if left <= 0 and self.running < max(1, int(self.limit)):
                    self.running += 1
                    return time.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._changed.wait(), min(left, BEAT) if left > 0 else None
                    )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async with self._changed:
            self.running -= 1
            self._changed.notify_all()

    def went_well(self) -> None:
        """A request was answered."""
        self.limit = min(float(self._most), self.limit + 1 / self.limit)

    def overloaded(self, sent: float, pause: float = 0.0) -> None:
        """The server could not serve a request that was sent at `sent`; it asks for a pause.

        Of requests that were under way together only the first halves the limit.
        """
        if sent >= self._cut:
            self.limit = max(1.0, self.limit / 2)
            self._cut = time.monotonic()
        self._until = max(self._until, time.monotonic() + pause)

    def let_go(self) -> None:
        """End a pause."""
        self._until = 0.0
