"""The sampler, the trainer and the judges of a run in this process, where processes would only cost
time: those of a play on the testbed take longer to start than to do their work."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from selfkd.cluster import Check, Cluster


class InProcess(Cluster):
    """A cluster whose actors are plain objects here; what is asked of them is done at once."""

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *error: object) -> None: ...

    def start(self, cls: type, *args: Any, **placing: Any) -> Any:
        return _Actor(cls(*args))

    def get_all(
        self, refs: Sequence[Any], what: str, *, timeout: float, check: Check = lambda: None
    ) -> list[Any]:
        check()
        return [ref.result() for ref in refs]

    def stream(
        self, generator: Any, what: str, *, timeout: float, check: Check = lambda: None
    ) -> Iterator[Any]:
        for value in generator.result():
            check()
            yield value


class _Actor:
    """An object with its methods as those of a Ray actor's handle."""

    def __init__(self, instance: object) -> None:
        self._instance = instance

    @property
    def __ray_call__(self) -> "_Method":
        return _Method(lambda function: function(self._instance))

    def __getattr__(self, name: str) -> "_Method":
        return _Method(getattr(self._instance, name))


class _Method:
    def __init__(self, method: Any) -> None:
        self._method = method

    def options(self, **options: Any) -> "_Method":
        return self

    def remote(self, *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(self._method(*args))
        except Exception as error:
            done.set_exception(error)
        return done
