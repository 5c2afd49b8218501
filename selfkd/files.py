"""Files that are written whole or not at all, and what a file system says that cannot take them."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from selfkd.errors import InfrastructureError

FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {*FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What a file system answers that cannot take a write."""


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(path: Path) -> None:
    """Flush a directory entry: a rename is durable only after this."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `path` once all of it is on the disk, and never before."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that a reader, or a restart after a crash, sees all of it or none."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise disk_error(error, path, len(data)) from error


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file atomically."""
    write_atomically(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def make_directory(path: Path) -> None:
    """Create a directory and its parents, or say why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def share(source: Path, target: Path) -> None:
    """Copy a folder whose files never change: by hard links where the file system allows it."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    try:
        shutil.copytree(source, target, copy_function=link)
    except OSError as error:
        raise disk_error(error, target) from error


def disk_error(error: OSError, path: Path, need: int = 0) -> InfrastructureError:
    """Turn a failed write into the error a person can act on; `need` is its size in bytes."""
    if error.errno in FULL:
        place = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(place).free / 1e6
        wanted = f"{need / 1e6:.3f} MB wanted, " if need else ""
        return InfrastructureError(
            f"the disk is full ({error.strerror}): {wanted}{free:.3f} MB free",
            where=str(path),
            remedy="free space (keep_policies lets old weights go), then resume the run",
        )
    return InfrastructureError(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        remedy="fix the permissions or the disk, then resume the run",
    )


@contextlib.contextmanager
def writing(path: Path, need: int = 0) -> Iterator[None]:
    """Give what a file system refuses meanwhile as a `disk_error` about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise disk_error(error, path, need) from error
