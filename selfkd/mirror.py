"""A copy of a run in an object store, kept up while the run goes on (`storage`).

The run itself is on a local disk, whose renames and appends are what keeps it whole; object stores
have neither. What is committed there never changes, so it is copied once; events and figures are
copied again when they grow. Data goes before the manifest that names it. So what is there at any
moment is a run that can be fetched and resumed on another machine, with at most the last seconds to
be done again.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from selfkd.errors import InfrastructureError, UsageError

EVERY = 5.0
"""Seconds between two looks at what is new."""
BLOCK = 2**24
"""Bytes that are copied at a time."""
LAST = ("run.yaml", "metrics.jsonl", "events.jsonl")
"""Copied after everything that they tell of."""


def is_uri(text: str) -> bool:
    """Whether a run is named by where it is stored, as in s3://bucket/runs/NAME."""
    return "://" in text


class Mirror:
    """Copies one run directory to `URI/NAME` until it is left; errors wait for the end.

    While it goes on a store that does not answer is tried again and again: the run is not held up.
    """

    def __init__(self, uri: str, local: Path) -> None:
        self._where = f"{uri.rstrip('/')}/{local.name}"
        self._local = local
        self._sent: dict[str, tuple[int, int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)

    def __enter__(self) -> "Mirror":
        self._files, self._root = _open(self._where)
        self._sent = {name: (size, 0) for name, size in _listed(self._files, self._root)}
        self.push()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            self.push()
        except InfrastructureError:
            if error is None:
                raise

    def push(self) -> None:
        """Copy what is new or changed, and remove what is gone."""
        names = _names(self._local)
        for name in sorted(names, key=_rank):
            self._copy(name)
        for name in self._sent.keys() - set(names):
            try:
                self._files.delete_file(f"{self._root}/{name}")
            except OSError as error:
                raise _unreachable(self._where, error) from error
            del self._sent[name]

    def _copy(self, name: str) -> None:
        path = self._local / name
        try:
            stat = path.stat()
            size, changed = self._sent.get(name, (-1, -1))
            if size == stat.st_size and (changed == stat.st_mtime_ns or _is_final(name)):
                return
            source = path.open("rb")
        except FileNotFoundError:
            return  # moved since it was listed: it has another name now
        target = f"{self._root}/{name}"
        with source:
            try:
                if self._files.type_name == "local":  # stores have no folders to be made first
                    Path(target).parent.mkdir(parents=True, exist_ok=True)
                with self._files.open_output_stream(target) as out:
                    shutil.copyfileobj(source, out, BLOCK)
            except OSError as error:
                raise _unreachable(self._where, error) from error
        self._sent[name] = (stat.st_size, stat.st_mtime_ns)

    def _keep_up(self) -> None:
        while not self._done.wait(EVERY):
            try:
                self.push()
            except InfrastructureError:
                continue  # tried again, and raised in the end


def fetch_run(uri: str, runs: Path) -> Path:
    """The local copy of a stored run, in the folder `runs`, brought up to date.

    Raises UsageError where there is no run.
    """
    where = uri.rstrip("/")
    files, root = _open(where)
    local = runs / where.rpartition("/")[2]
    stored = dict(_listed(files, root))
    if "run.yaml" not in stored:
        raise UsageError(
            "there is no run", where=uri, remedy="name it as STORAGE/NAME, as in s3://bucket/runs/a"
        )
    for name in sorted(stored, key=_rank):
        path = local / name
        held = path.stat().st_size if path.exists() else -1
        if held == stored[name] or (name in LAST and held > stored[name]):
            continue  # what grows here may be ahead of what was copied
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".tmp-fetch-{path.name}")
        try:
            with files.open_input_stream(f"{root}/{name}") as source, partial.open("wb") as out:
                shutil.copyfileobj(source, out, BLOCK)
        except OSError as error:
            raise _unreachable(uri, error) from error
        partial.replace(path)
    return local


def _open(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it. Options may follow a `?`, as Arrow has them."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    head, _, options = uri.partition("?")
    # The run's name was added behind the options.
    options, _, name = options.partition("/")
    address = head + (f"/{name}" if name else "") + (f"?{options}" if options else "")
    try:
        files, path = FileSystem.from_uri(address)
    except (ArrowException, ValueError, OSError) as error:
        raise UsageError(
            f"cannot use {uri} as storage: {str(error).splitlines()[0]}",
            where="storage",
            remedy="name an object store that Arrow can reach, such as s3://bucket/runs",
        ) from error
    return files, path.rstrip("/")


def _listed(files: Any, root: str) -> Iterator[tuple[str, int]]:
    """Names below `root`, and sizes in bytes."""
    from pyarrow.fs import FileSelector, FileType

    try:
        found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    except OSError as error:
        raise _unreachable(root, error) from error
    for info in found:
        if info.type == FileType.File:
            yield info.path[len(root) + 1 :], info.size


def _names(local: Path) -> list[str]:
    """Files of a run, without what is in the making and without its lock."""
    found = []
    for folder, folders, files in os.walk(local):  # passes over what is renamed meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".") and name != "lock"]
        found += [(Path(folder) / name).relative_to(local).as_posix() for name in names]
    return found


def _is_final(name: str) -> bool:
    """Whether a file is written once: whole when it appears, and never changed."""
    return name.endswith((".parquet", ".safetensors", "manifest.json", "MANIFEST.json"))


def _rank(name: str) -> tuple[int, str]:
    manifest = name.rpartition("/")[2].lower() == "manifest.json"
    return (2 if name in LAST else 1 if manifest else 0), name


def _unreachable(where: str, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        f"the copy at {where} is behind: {str(error).splitlines()[0][:300]}",
        where="storage",
        remedy="the run itself is whole on this machine; resume it when the store answers",
    )
