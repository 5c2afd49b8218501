"""The program as its tests see it: values, and handles of objects that stay where they are."""

import builtins
import io
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from selfkd.sandbox.inside.wire import BETWEEN, BOX, maker, receive, send

COMMAND = [sys.executable, "-I", "-B", "-c"]
SERVE = f"import sys; sys.path.insert(0, {BOX!r})\nfrom selfkd.sandbox.inside import program\n"


class Broken(BaseException):
    """The tests are at fault, not the program."""


class Ended(BaseException):
    """The program's process is gone, or answers nonsense."""


class Handle:
    """An object of the program."""

    def __init__(self, program: "Program", number: int, kind: str) -> None:
        self.__dict__.update(_program=program, _number=number, _kind=kind)

    def _do(self, operation: str, *args: Any) -> Any:
        return self._program.ask(operation, (self, *args))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._do("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._do("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("set", name, value)

    def __repr__(self) -> str:
        return f"<{self._kind}>"

    def __hash__(self) -> int:
        return self._number

    def __exit__(self, *error: object) -> None:
        self._do("exit")

    def __iter__(self) -> Iterator[Any]:
        iterator = self._do("iter")
        while True:
            try:
                value = iterator._do("next")
            except StopIteration:
                return
            yield value


def _method(operation: str) -> Callable[..., Any]:
    return lambda self, *args: self._do(operation, *args)


def _conversion(kind: type) -> Callable[[Handle], Any]:
    def convert(self: Handle) -> Any:
        value = self._do(kind.__name__)
        if type(value) is not kind:
            raise TypeError(f"a {self._kind} is no {kind.__name__}")
        return value

    return convert


def _length(self: Handle) -> int:
    return int(self._do("len"))


def _between(operation: str) -> Callable[[Handle, Any], Any]:
    def method(self: Handle, other: Any) -> Any:
        return self._do(operation, other) if isinstance(other, Handle) else NotImplemented

    return method


Handle.__len__ = _length  # type: ignore[attr-defined]
for _name in ("getitem", "setitem", "delitem", "next", "enter"):
    setattr(Handle, f"__{_name}__", _method(_name))
for _kind in (str, bool, int, float):
    setattr(Handle, f"__{_kind.__name__}__", _conversion(_kind))
for _name in BETWEEN:
    setattr(Handle, f"__{_name}__", _between(_name))


class _Requests(pickle.Pickler):
    def persistent_id(self, obj: Any) -> int | None:
        return obj._number if type(obj) is Handle else None


class _Results(pickle.Unpickler):
    """Plain data and handles, and no class that could bring behaviour along."""

    def __init__(self, data: bytes, program: "Program") -> None:
        super().__init__(io.BytesIO(data))
        self._program = program

    def find_class(self, module: str, name: str) -> Any:
        return maker(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._program.handle(*pid)


class Program:
    """The program's process."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}
        self._process = subprocess.Popen(
            [*COMMAND, f"{SERVE}program.serve()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, operation: str, args: tuple[Any, ...]) -> Any:
        """The result of an operation in the program, or the error that it raised there."""
        answer = self._answer(_dumped(operation, args))
        try:
            how, value, changed = _Results(answer, self).load()
            error = value[0](value[1]) if how == "raise" else None
            before = args[1] if operation == "call" else ()
            for old, new in zip(before, changed):  # noqa: B905 - a forged answer may be short
                _update(old, new)
        except Exception as failed:
            raise Ended(f"the program's answer is no data: {failed!r}") from None
        if error is not None:
            raise error
        return value

    def _answer(self, data: bytes) -> bytes:
        assert self._process.stdin and self._process.stdout
        try:
            send(self._process.stdin, data)
            answer = receive(self._process.stdout)
        except OSError:
            answer = b""
        if not answer:
            raise Ended(how_ended(self._process))
        return answer

    def handle(self, kind: str, number: int, detail: Any) -> Any:
        """The handle of a number, always the same one; an exception becomes a class to catch."""
        if number not in self._handles:
            is_class = kind == "exception"
            made = _exception(detail) if is_class else Handle(self, number, detail)
            self._handles[number] = made
        return self._handles[number]


def how_ended(process: "subprocess.Popen[bytes]") -> str:
    """Why a process of the program is gone."""
    status = process.wait()
    if status == -signal.SIGXCPU:
        return "out of time"
    return f"the program ended before its answer (status {status})"


def _dumped(operation: str, args: tuple[Any, ...]) -> bytes:
    data = io.BytesIO()
    try:
        _Requests(data).dump((operation, args))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Broken(f"an argument cannot be given to another process: {error}") from None
    return data.getvalue()


def _exception(names: list[str]) -> type[BaseException]:
    """The exception class of these names, most special first: a built-in one, or a new one."""
    for name in names:
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found if name == names[0] else type(names[0], (found,), {})
    return type(names[0], (RuntimeError,), {})


def _update(before: Any, after: Any) -> None:
    """Change a container in place to what the program made of it."""
    if type(before) is not type(after) or before == after:
        return
    if isinstance(before, list | bytearray):
        before[:] = after
    elif isinstance(before, dict | set):
        before.clear()
        before.update(after)
