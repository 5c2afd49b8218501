"""How Ray starts on this machine: what it would find out late, and what it would do by itself."""

import contextlib
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfkd.errors import InfrastructureError

SOCKET_PATH = 107
"""Longest path of a Unix socket, bytes."""
SUFFIX = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
ROOM = 4 * 2**20
"""Bytes that the temporary folder has to take: more than Ray writes there in its first minute."""
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Variables by which a user says where Ray's token is, or that there is none."""


def temporary_folder() -> Path:
    """Where Ray makes its own for sockets and logs; an empty variable does not count."""
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    return Path(named or "/tmp").absolute()


def longest_socket(folder: Path) -> int:
    """Bytes of the longest path of a socket that Ray makes below a folder."""
    return len(str(folder).encode()) + SUFFIX


def place_for_ray() -> Path:
    """Where Ray is to keep its files; an InfrastructureError where it could not.

    Ray waits for half a minute for a file that a full disk did not take, and names neither.
    """
    folder = temporary_folder()
    if (length := longest_socket(folder)) > SOCKET_PATH:
        raise InfrastructureError(
            f"{folder} is too long a path for Ray's sockets ({length} of {SOCKET_PATH} bytes)",
            where="cluster",
            remedy="set RAY_TMPDIR to a shorter one",
        )
    if reason := _cannot_have(folder, ROOM):
        raise InfrastructureError(
            f"Ray has no place for its files: {folder}: {reason}",
            where="cluster",
            remedy="make room there, or set RAY_TMPDIR to a folder that can be written",
        )
    _keep_token()
    return folder / "ray"


def cannot_write(folder: Path, size: int) -> str:
    """Why a folder does not take so many bytes; nothing where it does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _cannot_have(folder: Path, size: int) -> str:
    """As `cannot_write`, of a folder that is made if it is missing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return cannot_write(folder, size)


def _keep_token() -> None:
    """Ray's token in this process's environment, where the home folder cannot keep it."""
    folder = Path.home() / ".ray"
    if any(name in os.environ for name in TOKEN) or (folder / "auth_token").exists():
        return
    if _cannot_have(folder, 100):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start or join Ray in here, without some of its ways that have no setting.

    It would replace this process's answer to SIGTERM. It would print to stdout, which is the run's,
    that a process died, which whoever called that process is told by an exception. And it would
    start what adds nodes and what passes on what actors print, each a Python process of 80 MB.
    """
    from ray._private import worker
    from ray._private.node import Node

    worker.print_to_stdstream = lambda data, ignore_prefix: None
    node: Any = Node
    monitors = node.start_monitor, node.start_log_monitor
    node.start_monitor = node.start_log_monitor = lambda node: None
    main = threading.current_thread() is threading.main_thread()
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        node.start_monitor, node.start_log_monitor = monitors
        if main:
            signal.signal(signal.SIGTERM, former)
