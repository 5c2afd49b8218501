"""Imports of large libraries, which take a process most of its start."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Keep the garbage collector away from what is imported here, now and later.

    Modules make a million objects that stay. While they are made the collector would look at them
    again and again, a fifth of vLLM's import; afterwards, in each of its full rounds.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries that count what is left print all of it
