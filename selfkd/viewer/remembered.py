"""What was read of runs before, up to a size, so that the next look is quick."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """Values by key, the last used ones, with at most `rows` rows together; safe among threads."""

    def __init__(self, rows: int, size: Callable[[T], int]) -> None:
        self._rows, self._size = rows, size
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value of `key`, made where it is not remembered."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                self._forget()
            self._values.move_to_end(key)
            return self._values[key]

    def _forget(self) -> None:
        total = sum(map(self._size, self._values.values()))
        while total > self._rows and len(self._values) > 1:
            _, oldest = self._values.popitem(last=False)
            total -= self._size(oldest)
