"""The program's process: executes the code under test and answers requests about its objects."""

import io
import operator
import os
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

from selfkd.sandbox.inside.wire import BETWEEN, VALUES, receive, send


class Results(pickle.Pickler):
    """Plain data by value; everything else as a handle that stays valid while the process lives."""

    kept: dict[int, Any] = {}  # noqa: RUF012 - one table for the process

    def persistent_id(self, obj: Any) -> Any:
        """A handle, as `(kind, number, detail)`, or None for what goes by value."""
        if type(obj) in VALUES or (isinstance(obj, type) and obj in VALUES) or _plain(obj):
            return None
        self.kept[id(obj)] = obj
        if isinstance(obj, type) and issubclass(obj, BaseException):
            return "exception", id(obj), [c.__name__ for c in obj.__mro__]
        return "object", id(obj), type(obj).__name__

    def reducer_override(self, obj: Any) -> Any:
        """Named tuples, NumPy's values and subclasses of numbers: what they are made of."""
        plain = _plain(obj)
        return plain(obj) if plain else NotImplemented


def _plain(obj: Any) -> Callable[[Any], tuple[Any, ...]] | None:
    if type(obj) in VALUES or isinstance(obj, type):
        return None
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return lambda o: (tuple, (list(o),))
    if type(obj).__module__ == "numpy" and hasattr(obj, "tolist"):
        return lambda o: (list if o.shape else type(o.item()), (o.tolist(),))
    for base in (int, float):
        if isinstance(obj, base):
            return lambda o, base=base: (base, (base(o),))
    return None


class Requests(pickle.Unpickler):
    """What the tests send; they are the data set's, and may be any object."""

    def persistent_load(self, pid: int) -> Any:
        """The object of a handle."""
        return Results.kept[pid]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "iter": iter,
    "next": next,
    "enter": lambda o: o.__enter__(),
    "exit": lambda o: o.__exit__(None, None, None),
    "str": str,
    "len": len,
    "bool": bool,
    "int": int,
    "float": float,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    **{name: getattr(operator, name) for name in BETWEEN},
}
"""What tests can do with a handle. Not `in`: Python then iterates and compares the values."""


def serve() -> None:
    """Answer until the tests' process is gone."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what it prints is no reply
    OPERATIONS["load"] = _load
    while request := receive(requests):
        operation, args = Requests(io.BytesIO(request)).load()
        try:
            data = _dumped("value", OPERATIONS[operation](*args), operation, args)
        except BaseException as error:
            data = _dumped("raise", (type(error), str(error)), operation, args)
        send(replies, data)


def _dumped(how: str, value: Any, operation: str, args: Any) -> bytes:
    data = io.BytesIO()
    # Arguments go back too: some functions are there to change them.
    Results(data).dump((how, value, args[1] if operation == "call" else ()))
    return data.getvalue()


def _load(code: str) -> dict[str, Any]:
    """Execute the program; its names."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(code, "solution.py", "exec"), module.__dict__)
    return {name: v for name, v in vars(module).items() if not name.startswith("__")}
