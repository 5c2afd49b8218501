"""What crosses between the tests' process and the program's, and how."""

import datetime
import hashlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import IO, Any

BOX = "/box"
"""Where this package lies inside the sandbox."""
SOLUTION = f"{BOX}/solution.py"
"""The program, as a file that can be run."""

VALUES: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice),
    *(list, tuple, dict, set, frozenset, OrderedDict, defaultdict, deque, Counter),
    *(Decimal, Fraction, datetime.date, datetime.datetime, datetime.time),
    *(datetime.timedelta, datetime.timezone),
)
"""Types that cross by value: exactly these, not what derives from them."""

BETWEEN = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "matmul")
"""What tests can do with two handles, but not with a handle and data: of that the program must not
decide."""


def send(pipe: IO[bytes], data: bytes) -> None:
    """Write one message: its length in 8 bytes, then itself."""
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """Read one message; empty where the other side is gone."""
    size = pipe.read(8)
    return pipe.read(int.from_bytes(size, "big")) if len(size) == 8 else b""


def maker(module: str, name: str) -> Callable[..., Any]:
    """What makes a value of the type of that name; KeyError for any other.

    A function and not the type itself, which a forged pickle could change.
    """
    kind = _KINDS[module, name]
    return lambda *args: kind(*args)


_KINDS = {(kind.__module__, kind.__qualname__): kind for kind in VALUES}


def digest(text: str) -> str:
    """What outputs are compared by: line ends, and blanks before them, do not count."""
    lines = [line.rstrip() for line in text.replace("\r", "").split("\n")]
    return hashlib.sha256("\n".join(lines).rstrip("\n").encode("utf-8", "replace")).hexdigest()
