"""Imports of large libraries, which take a process most of its start."""

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.abc import MetaPathFinder


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Keep the garbage collector away from what is imported here, now and later.

    Modules make a million objects that stay. While they are made the collector would look at them
    again and again, a fifth of vLLM's import; afterwards, in each of its full rounds. What is
    installed is read once: transformers and TRL each ask, and all metadata takes half a second.
    """
    gc.disable()
    installed = metadata.packages_distributions
    metadata.packages_distributions = cache(installed)
    try:
        yield
    finally:
        metadata.packages_distributions = installed
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries that count what is left print all of it


def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, only to see that a list is none of its objects.

    It does so once, in whatever process makes a table, and takes half a second. What asks pyarrow
    for a data frame later still gets one. For processes of our own, as it holds for all of it.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    missing = _NoPandas()
    sys.meta_path.insert(0, missing)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(missing)


class _NoPandas(MetaPathFinder):
    """Says that pandas is not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError(fullname)
