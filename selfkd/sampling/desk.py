"""The one thread that an engine lives in, and the desk where other threads hand work in.

Generation and judging ask for completions at the same time, from different threads of the actor.
Their requests share the engine's batch. What needs the engine to itself, such as an update of its
weights, waits until nothing is in hand, and new work waits behind it.
"""

import contextlib
import dataclasses
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from selfkd.errors import InfrastructureError
from selfkd.sampling.base import Answer, Engine, Work

T = TypeVar("T")


class Desk:
    """Starts an engine in a thread of its own and works off what is handed in."""

    def __init__(self, start: Callable[[], Engine]) -> None:
        """`start` builds the engine; its errors are raised here."""
        self.engine: Engine
        self._inbox: queue.SimpleQueue[_Part | _Alone | _Order] = queue.SimpleQueue()
        """An order of its own says that it was given up."""
        self._open: dict[str, tuple[_Order, str]] = {}
        self._waiting: deque[_Part | _Alone] = deque()
        self._numbers = itertools.count()
        started: Future[None] = Future()
        threading.Thread(target=self._live, args=(start, started), daemon=True).start()
        started.result()

    def answers(
        self, policy: str, work: Work, at_once: int | None = None
    ) -> Iterator[tuple[str, Answer]]:
        """`(request id, answer)` as they come; giving up the iterator gives up the rest.

        The engine is given `at_once` requests (default: all), and as many again whenever less than
        that are left to be taken from here: so it always has enough to do for one who takes its
        answers, and less than twice as many pile up for one who does not.
        Raises InfrastructureError unless the engine holds `policy`, and what the engine raises.
        """
        order = _Order(str(next(self._numbers)), policy, work, at_once or len(work.requests))
        self._hand_in(order)  # now, not when the first answer is asked for
        return self._follow(order)

    def _hand_in(self, order: "_Order") -> None:
        if order.parts and order.untaken < order.at_once:
            part = order.parts.popleft()
            order.untaken += len(part.requests)
            self._inbox.put(_Part(order, part))

    def _follow(self, order: "_Order") -> Iterator[tuple[str, Answer]]:
        left = len(order.work.requests)
        try:
            while left:
                self._hand_in(order)
                item = order.out.get()
                if isinstance(item, BaseException):
                    left = 0
                    raise item
                left -= 1
                order.untaken -= 1
                yield item
        finally:
            if left:
                order.given_up = True
                self._inbox.put(order)

    def alone(self, do: Callable[[Engine], T]) -> T:
        """The value of `do`, called in the engine's thread while nothing else is in hand."""
        task = _Alone(do)
        self._inbox.put(task)
        return task.done.result()

    # -- the engine's thread ----------------------------------------------------------------------

    def _live(self, start: Callable[[], Engine], started: Future[None]) -> None:
        try:
            self.engine = start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        while True:
            self._receive()
            if self._open:
                self._step()
            elif self._waiting:
                self._serve(self._waiting.popleft())

    def _receive(self) -> None:
        """Take in what is handed in; wait for it only where there is nothing else to do."""
        while not (self._open or self._waiting) or not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, _Order):
                self._give_up(item)
            else:
                self._waiting.append(item)
        while self._waiting and isinstance(self._waiting[0], _Part):
            self._serve(self._waiting.popleft())

    def _serve(self, item: "_Part | _Alone") -> None:
        if isinstance(item, _Alone):
            item.run(self.engine)
        elif (order := item.order).policy != self.engine.policy:
            wrong = f"the sampler holds {self.engine.policy}, asked for samples of {order.policy}"
            order.out.put(InfrastructureError(wrong))
        elif not order.given_up:
            requests: Any = tuple(self._named(order, r) for r in item.work.requests)
            try:
                self.engine.add(dataclasses.replace(item.work, requests=requests))
            except Exception as error:
                self._give_up(order)
                order.out.put(error)

    def _named(self, order: "_Order", request: Any) -> Any:
        name = f"{order.number}/{request.id}"
        self._open[name] = (order, request.id)
        return dataclasses.replace(request, id=name)

    def _step(self) -> None:
        try:
            finished = self.engine.step()
        except Exception as error:
            self._fail(error)
            return
        for name, answer in finished:
            if name in self._open:
                order, request_id = self._open.pop(name)
                order.out.put((request_id, answer))
        if self._open and not self.engine.busy:
            left = f"the engine left {len(self._open)} requests without an answer"
            self._fail(InfrastructureError(left, where="engine"))

    def _fail(self, error: Exception) -> None:
        """Tell everybody who waits, and drop all work."""
        names, orders = list(self._open), {id(o): o for o, _ in self._open.values()}
        self._open.clear()
        with contextlib.suppress(Exception):  # an engine that failed may not even do this
            self.engine.drop(names)
        for order in orders.values():
            order.out.put(error)

    def _give_up(self, order: "_Order") -> None:
        names = [name for name, (whose, _) in self._open.items() if whose is order]
        for name in names:
            del self._open[name]
        self.engine.drop(names)


class _Order:
    """Work to be done for one who waits, and where its answers go."""

    def __init__(self, number: str, policy: str, work: Work, at_once: int) -> None:
        self.number = number
        self.policy = policy
        self.work = work
        self.at_once = at_once
        self.given_up = False
        self.out: queue.SimpleQueue[tuple[str, Answer] | BaseException] = queue.SimpleQueue()
        starts = range(0, len(work.requests), at_once or 1)
        parts = (work.requests[i : i + at_once] for i in starts)
        self.parts = deque(dataclasses.replace(work, requests=part) for part in parts)
        """What was not handed in yet."""
        self.untaken = 0
        """Requests that were, and whose answer was not taken."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Requests of an order that the engine is to have at once."""

    order: _Order
    work: Work


class _Alone:
    """A call that needs the engine to itself."""

    def __init__(self, do: Callable[[Engine], Any]) -> None:
        self._do = do
        self.done: Future[Any] = Future()

    def run(self, engine: Engine) -> None:
        try:
            self.done.set_result(self._do(engine))
        except BaseException as error:
            self.done.set_exception(error)
