"""What this machine has: cores, memory, accelerators. Loads nothing heavy."""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

GIB = 2**30

SCARCE = 0.25
"""Share of the machine's memory below which what is free is scarce."""
GROWN = 1.5
"""How much more than after its first piece of work a process may hold: freed blocks have holes, and
with trainings of one size it comes to hold 1.3 to 1.6 times as much."""

CGROUP = Path("/sys/fs/cgroup")
CGROUP_MEMORY = (
    ("", "memory.max", "memory.current", ""),
    ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Where version 2 and version 1 tell the limit of memory, and what is used of it."""


def cores() -> int:
    """CPU cores this process may use: its affinity, or a cgroup's quota if that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cpu_quota()
    return max(1, min(allowed or 1, int(quota + 0.5) if quota else 10**6))


def memory_gib() -> float:
    """Memory this process may use in all, GiB: the machine's, or a cgroup's limit if less."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _cgroup_memory())])


def available_gib() -> float:
    """Memory that is free now, GiB: on the machine, or within a cgroup's limit if less."""
    return min([_meminfo("MemAvailable"), *(free for _, free in _cgroup_memory())])


def resident_gib() -> float:
    """Memory that this process holds now, GiB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / GIB


class FreedMemory:
    """What this process has freed: kept for its next piece of work, which would have to have it
    cleared again, or given back to the system."""

    def __init__(self, release: Callable[[], None] | None = None) -> None:
        """`release` frees what else is only kept."""
        self._release = release
        self._usual = 0.0
        """What was held after the first piece of work, GiB."""

    def settle(self) -> None:
        """After a piece of work: give it back if the machine is short of memory, or if this process
        holds ever more."""
        held = resident_gib()
        self._usual = self._usual or held
        if available_gib() < SCARCE * memory_gib() or held > GROWN * self._usual:
            if self._release:
                self._release()
            trim_memory()


def trim_memory() -> None:
    """Return to the system what this process has freed and the C library keeps."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def compute_dtype(dtype: str) -> str:
    """`float32` or `bfloat16`; auto takes bfloat16 where the hardware multiplies it natively."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if has_gpu() or _cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def has_gpu() -> bool:
    """Whether an NVIDIA device is there for this process."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidia0").exists()


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it.

    A mere folder of its name, such as the `wandb/` that W&B leaves behind, is not the package.
    """
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL here, and rounds nothing on the way.

    On AMD's processors MKL leaves AVX-512 alone. Those with AMX, which oneDNN may round for, are
    Intel's. benchmarks/products.py prints speed and error of both.
    """
    flags = _cpu_flags()
    return "AuthenticAMD" in _cpu("vendor_id") and "avx512f" in flags and "amx_bf16" not in flags


def trains_by_onednn(dtype: str) -> bool:
    """Whether a training in `dtype` has its products made by oneDNN: on a CPU, and in float32 where
    that one is preferred."""
    return not has_gpu() and (dtype == "bfloat16" or prefers_onednn())


def _cpu_flags() -> frozenset[str]:
    return frozenset(_cpu("flags").split())


@cache
def _cpu(key: str) -> str:
    """What the system says of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith(key)), "")


def _meminfo(key: str) -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(key + ":"))


def _cgroup_memory() -> list[tuple[float, float]]:
    """The limit of a cgroup, if there is one, and what is free within it, GiB."""
    found = []
    for folder, limit, used, kind in CGROUP_MEMORY:
        most, taken = _read(folder + limit), _read(folder + used)
        if most.isdigit() and taken.isdigit() and int(most) < 2**60:
            stat = dict(line.split() for line in _read(folder + "memory.stat").splitlines())
            # Copies of files, which make room for whoever wants it.
            copies = sum(int(stat.get(f"{kind}{s}_file", 0)) for s in ("active", "inactive"))
            found.append((int(most) / GIB, (int(most) - int(taken) + copies) / GIB))
    return found


def _cpu_quota() -> float | None:
    quota, _, period = _read("cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
