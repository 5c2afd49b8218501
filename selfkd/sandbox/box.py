"""A bubblewrap sandbox: no network, no files of the host, nobody's rights, and hard limits.

What holds what back:

- bubblewrap: own user, process, network, mount and IPC namespaces. Of the host's files a program
  sees /usr and the Python it runs on, read-only; `/proc` is not there at all; `/tmp` is its own.
- a seccomp filter (`selfkd.sandbox.filter`): kernel interfaces that namespaces do not cover.
- rlimits: memory, size of a file, processes, descriptors, CPU time and no core dumps.
- the parent (`selfkd.sandbox.watch`): wall-clock time, memory of all processes together, files in
  `/tmp`, output. The end of the first process ends all.

As root the sandbox is started as `nobody`: root's own processes are exempt from limits.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from selfkd.errors import UsageError
from selfkd.sandbox.filter import seccomp_filter
from selfkd.sandbox.watch import Bounds, Outcome, watch

NOBODY = 65534
"""User and group id inside the sandbox, and outside it where selfkd runs as root."""

OLDEST = (0, 7)
"""First bubblewrap that can limit the size of /tmp."""

_NONE: Mapping[str, bytes] = MappingProxyType({})

INSTALL = "apt-get install bubblewrap (Fedora: dnf install bubblewrap)"

ALLOW = (
    "allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1; on Ubuntu also "
    "kernel.apparmor_restrict_unprivileged_userns=0; in Docker run the container with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run in the sandbox may use."""

    seconds: int = 10
    """Processor time of each process; on the clock all may take three times as long, so that a
    busy machine fails nobody."""
    memory_mb: int = 1024
    """Memory of each process (address space) and of all together (resident), MB."""
    processes: int = 32
    """Processes and threads at once."""
    disk_mb: int = 16
    """Files in /tmp together, MB; they are in memory."""
    output_kb: int = 256
    """Standard output and error together, KB."""


class Sandbox:
    """A place to run one program at a time; every run starts afresh and leaves nothing behind."""

    def __init__(self, limits: Limits | None = None, python: str = "") -> None:
        """`python` is the interpreter that is made visible inside; default: the one that selfkd
        runs on, without the packages of its environment."""
        self.limits = limits or Limits()
        self._wanted = python

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] = _NONE,
    ) -> Outcome:
        """Run a command; `files` (absolute path -> content) are put into the sandbox read-only.

        UsageError where there is no sandbox to run it in.
        """
        limits = self.limits
        with ExitStack() as stack:
            user = NOBODY if _is_root() else None
            status, rules = _file(stack), _file(stack, seccomp_filter())
            given = {path: _file(stack, content) for path, content in files.items()}
            options = ["--json-status-fd", str(status), "--seccomp", str(rules)]
            for path, file in given.items():
                options += ["--ro-bind-data", str(file), path]
            options += ["--remount-ro", "/"]
            process = subprocess.Popen(
                [*self._bubblewrap, *self._view, *options, "--", *_bounded(limits), *command],
                stdin=_file(stack, stdin),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[status, rules, *given.values()],
                cwd="/",
                env={},  # bubblewrap's own processes would keep what it is given
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
            outcome = watch(process, _bounds(limits))
            if outcome.end == "exit" and b"exit-code" not in os.pread(status, 4096, 0):
                raise _unusable(outcome.stderr.decode(errors="replace"))
        return outcome

    def check(self) -> None:
        """UsageError, with the remedy, where a sandboxed program cannot run on this machine."""
        outcome = self.run([self.python, "-I", "-c", "print('ready')"])
        if outcome.stdout != b"ready\n":
            said = outcome.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise UsageError(
                f"Python does not start in the sandbox ({outcome.end}): {said[-1]}",
                where=self.python,
                remedy="raise the limits, or name another interpreter",
            )

    @cached_property
    def python(self) -> str:
        """Path of the interpreter, the same inside and outside."""
        return str(self._interpreter["executable"])

    @cached_property
    def _bubblewrap(self) -> list[str]:
        path = shutil.which("bwrap")
        if path is None:
            raise UsageError("there is no sandbox to run generated code in", remedy=INSTALL)
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = tuple(map(int, re.findall(r"\d+", done.stdout)[:2]))
        if version < OLDEST:
            raise UsageError(
                f"bubblewrap {'.'.join(map(str, version))} cannot limit files; "
                f"{'.'.join(map(str, OLDEST))} is the first that can",
                where=path,
                remedy="install a newer one",
            )
        return [
            *(path, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session"),
            *("--clearenv", "--cap-drop", "ALL", "--hostname", "sandbox"),
            *("--uid", str(NOBODY), "--gid", str(NOBODY)),
        ]

    @cached_property
    def _view(self) -> list[str]:
        """The file system that a program sees."""
        size = str(self.limits.disk_mb * 2**20)
        shown = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            place = Path("/", name)
            if place.is_symlink():
                shown += ["--symlink", os.readlink(place), str(place)]
            elif place.is_dir():
                shown += ["--ro-bind", str(place), str(place)]
        for folder in self._interpreter["folders"]:
            if not Path(folder).is_relative_to("/usr"):
                shown += ["--ro-bind", folder, folder]
        if Path("/etc/ld.so.cache").exists():
            shown += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        shown += ["--dev", "/dev", "--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
        # Mathematics libraries would otherwise start a thread for each core of the host.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for name, value in environment.items():
            shown += ["--setenv", name, value]
        return [*shown, "--chdir", "/tmp"]

    @cached_property
    def _interpreter(self) -> dict[str, Any]:
        if self._wanted:
            return _inspect(self._wanted)
        own = getattr(sys, "_base_executable", sys.executable)
        for candidate in (own, shutil.which("python3", path="/usr/bin")):
            if candidate and _reachable(Path(os.path.realpath(candidate))):
                return _inspect(os.path.realpath(candidate))
        raise UsageError(
            f"the user nobody, which generated code runs as, may not read {own}",
            remedy="name another interpreter (judge option python), or do not run as root",
        )


def _inspect(python: str) -> dict[str, Any]:
    """Path of an interpreter and the folders that it needs."""
    code = (
        "import json, sys; print(json.dumps({'executable': sys.executable, "
        "'folders': sorted({sys.prefix, sys.base_prefix, sys.exec_prefix})}))"
    )
    try:
        command = [python, "-I", "-c", code]
        return json.loads(subprocess.check_output(command, stderr=subprocess.PIPE))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise UsageError(
            f"this is no Python interpreter: {error}", where=python, remedy="give its full path"
        ) from error


def _is_root() -> bool:
    """Whether this is the machine's root, and not only that of a user namespace."""
    mapped = Path("/proc/self/uid_map").read_text().split()
    return os.geteuid() == 0 and mapped == ["0", "0", str(2**32 - 1)]


def _reachable(path: Path) -> bool:
    """Whether the sandbox's user can run a file: everyone must, where that is nobody."""
    if not _is_root():
        return os.access(path, os.X_OK)
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def _file(stack: ExitStack, content: bytes = b"") -> int:
    """Descriptor of a file without a name, at its beginning."""
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file.fileno()


def _bounded(limits: Limits) -> list[str]:
    """The command that sets rlimits, inside: there the count of processes is the sandbox's own."""
    memory, disk = limits.memory_mb * 2**20, limits.disk_mb * 2**20
    return [
        *("/usr/bin/prlimit", f"--nproc={limits.processes}", f"--as={memory}", f"--fsize={disk}"),
        *("--core=0", "--nofile=128", "--memlock=0", "--msgqueue=0", "--sigpending=128"),
        *(f"--cpu={limits.seconds}:{limits.seconds + 1}", "--"),
    ]


def _bounds(limits: Limits) -> Bounds:
    return Bounds(
        3.0 * limits.seconds,
        limits.memory_mb * 2**20,
        limits.output_kb * 2**10,
        limits.disk_mb * 2**20,
    )


def _unusable(said: str) -> UsageError:
    reason = (said.strip().splitlines() or ["it says nothing"])[0].removeprefix("bwrap: ")
    blocked = re.search(r"namespace|uid map|not permitted|permission", reason, re.IGNORECASE)
    remedy = ALLOW if blocked else "see `selfkd doctor`"
    return UsageError(f"bubblewrap cannot make a sandbox here: {reason}", remedy=remedy)
