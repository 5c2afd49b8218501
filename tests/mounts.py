"""Commands in a name space of their own, with file systems that go when they end."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """An empty file system in the place of a folder; `options` are those of tmpfs."""

    folder: Path
    options: str


def mounted(mounts: Sequence[Mount], command: Sequence[str]) -> list[str]:
    """`command` with these in place; nothing where this user may not mount."""
    user = ["--user", "--map-root-user"] if os.getuid() else []
    each = [f"mount -t tmpfs -o {m.options} selfkd-test '{m.folder}'" for m in mounts]
    script = " && ".join([*each, 'exec "$@"'])
    found = ["unshare", "--mount", *user, "sh", "-c", script, "sh"]
    if subprocess.run([*found, "true"], capture_output=True).returncode:
        return []
    return [*found, *command]
