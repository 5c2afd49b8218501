"""The system calls that a sandboxed program may not make, as a seccomp filter for bubblewrap.

Namespaces hide what a program could reach; this keeps it from kernel interfaces that they do not
cover: memory that no limit counts (memfd, System V), sockets of other kinds than the Internet's and
Unix's (vsock reaches the host from any network namespace), new namespaces, and the memory of its
neighbours in the sandbox.
"""

import ctypes
import errno
import socket
import tempfile
from functools import cache
from typing import IO

from selfkd.errors import UsageError

DENIED = (
    # memory that belongs to no process
    *("memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "semget", "mq_open"),
    # other processes of the sandbox
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    # namespaces and mounts
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree"),
    *("fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr"),
    # large kernel interfaces that no exercise needs
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "fanotify_init"),
    *("add_key", "keyctl", "request_key", "open_by_handle_at", "name_to_handle_at"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("personality", "quotactl", "swapon", "swapoff", "syslog", "acct"),
)
"""Refused with EPERM; a name that this kernel or architecture does not know is passed over."""

SOCKETS = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
"""Address families that may be used; the sandbox has no network for them to reach."""

NAMESPACES = 0x7E020000
"""CLONE_NEW* flags: mount, cgroup, uts, ipc, user, pid and net."""

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NOT_EQUAL, _MASKED_EQUAL, _GREATER = 1, 7, 6


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of libseccomp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise UsageError(
            "there is no libseccomp, which the sandbox for generated code needs",
            remedy="apt-get install libseccomp2 (Fedora: dnf install libseccomp)",
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    ]
    return library


class _Filter:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._context = library.seccomp_init(_ALLOW)

    def deny(self, name: str, *conditions: _Comparison, error: int = errno.EPERM) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        given = (_Comparison * max(1, len(conditions)))(*conditions)
        failed = self._library.seccomp_rule_add_array(
            self._context, _ERRNO | error, number, len(conditions), given
        )
        if failed:
            raise OSError(-failed, f"libseccomp refuses a rule for {name}")

    def export(self, file: IO[bytes]) -> None:
        if failed := self._library.seccomp_export_bpf(self._context, file.fileno()):
            raise OSError(-failed, "libseccomp cannot write the filter")
        self._library.seccomp_release(self._context)


@cache
def seccomp_filter() -> bytes:
    """The filter as BPF of this machine's architecture; other architectures' calls are fatal."""
    rules = _Filter(_library())
    for name in DENIED:
        rules.deny(name)
    for flag in (1 << bit for bit in range(32) if NAMESPACES >> bit & 1):
        rules.deny("clone", _Comparison(0, _MASKED_EQUAL, flag, flag))
    # Its flags lie in memory, where a filter cannot look; C libraries fall back to clone.
    rules.deny("clone3", error=errno.ENOSYS)
    rules.deny("socket", _Comparison(0, _GREATER, max(SOCKETS), 0))
    for family in set(range(max(SOCKETS))) - set(SOCKETS):
        rules.deny("socket", _Comparison(0, _MASKED_EQUAL, 0xFFFFFFFF, family))
    with tempfile.TemporaryFile() as file:
        rules.export(file)
        file.seek(0)
        return file.read()
