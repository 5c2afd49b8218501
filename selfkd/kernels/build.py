"""Compiles and loads the C++ of native/, once for a version of it, a compiler and a kind of CPU."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
NEEDED = ("avx2", "fma")
PRODUCTS = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""What the matrix products are written for, beside the work on rows."""
NARROW = "avx512_bf16"
"""What makes the products take bfloat16 factors."""
BUILD_SECONDS = 300


class Unavailable(Exception):
    """Why there is no compiled path here, in words."""


def cache_folder() -> Path:
    """Where libraries are kept: `$SELFKD_KERNEL_CACHE`, or ~/.cache/selfkd/kernels."""
    given = os.environ.get("SELFKD_KERNEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "selfkd" / "kernels"


@cache
def cpu_flags() -> frozenset[str]:
    """What the running processor can do, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())


def has_products() -> bool:
    """Whether the library of this processor has the matrix products too."""
    return cpu_flags().issuperset(PRODUCTS)


def load() -> ctypes.CDLL:
    """The library, built if need be.

    Raises Unavailable where the processor, the compiler or the cache will not do.
    """
    missing = [flag for flag in NEEDED if flag not in cpu_flags()]
    if missing:
        raise Unavailable(f"this CPU lacks {' '.join(missing)}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler or not shutil.which(compiler):
        raise Unavailable(f"no C++ compiler ({compiler or 'g++'} is not on the PATH)")
    library = cache_folder() / f"{_key(compiler)}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"{library} cannot be made or loaded ({error}); delete it") from error


def _options() -> list[str]:
    wanted = [*NEEDED]
    if has_products():
        wanted += [*PRODUCTS, *({NARROW} & cpu_flags())]
    isa = [f"-m{flag.replace('_', '')}" for flag in wanted]
    return ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-mtune=native", *isa]


def _key(compiler: str) -> str:
    """A name that differs wherever the library could."""
    import torch

    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            digest.update(source.name.encode() + source.read_bytes())
    parts = (torch.__version__, compiler, *_options(), *sorted(cpu_flags()))
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:24]


def _compile(compiler: str, library: Path) -> None:
    """Build beside the target and rename, so that processes that build at once do not collide."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_options(), str(SOURCES / "kernels.cpp"), "-o", str(made)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{compiler} took more than {BUILD_SECONDS} s") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise Unavailable(f"{compiler} failed: {last}")
        made.replace(library)
