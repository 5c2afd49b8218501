"""The sandbox holds what generated code may try, and tests in it cannot be talked into passing."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import UsageError
from selfkd.sandbox.box import Limits, Sandbox
from selfkd.sandbox.testing import TestReport, Tests, run_tests
from selfkd.sandbox.watch import Outcome
from tests.sandboxes import needs_sandbox


def run(code: str, stdin: bytes = b"", **limits: int) -> Outcome:
    sandbox = Sandbox(Limits(**limits))
    return sandbox.run([sandbox.python, "-I", "-c", code], stdin=stdin)


def said(outcome: Outcome) -> str:
    return (outcome.stdout + outcome.stderr).decode()


def report_of(code: str, *sources: str, entry_point: str = "", **limits: int) -> TestReport:
    tests = Tests(sources, entry_point=entry_point)
    return run_tests(Sandbox(Limits(**limits)), code, tests)


@needs_sandbox
def test_a_program_reads_and_writes_and_its_end_is_told() -> None:
    outcome = run("import sys; print(sys.stdin.read() * 2); sys.exit(3)", b"hello")
    assert (outcome.end, outcome.status, outcome.stdout) == ("exit", 3, b"hellohello\n")


@needs_sandbox
def test_nothing_of_the_host_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-host")
    (tmp_path / "secret").write_text("secret-of-the-host")
    code = f"""
import os
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
print(sorted(os.environ))
print(sorted(os.listdir("/")), os.listdir("/tmp"), os.getuid(), os.getpid() < 5)
for path in ({str(tmp_path / "secret")!r}, os.path.expanduser("~/.ssh"), "/etc/passwd",
             "/proc/1/environ", "/proc/self/environ", "/sys/class", "/root", "/home"):
    print(path, read(path))
print(len(os.listdir("/dev/shm")), os.path.exists("/dev/sda"), os.path.exists("/dev/vda"))
"""
    outcome = run(code)
    assert outcome.status == 0, said(outcome)
    assert b"secret-of-the-host" not in outcome.stdout
    lines = outcome.stdout.decode().splitlines()
    assert "OPENAI_API_KEY" not in lines[0]
    assert "'proc'" not in lines[1] and "'home'" not in lines[1] and "[] 65534 True" in lines[1]
    assert {line.split()[1] for line in lines[2:10]} == {"FileNotFoundError"}
    assert lines[10] == "0 False False"


@needs_sandbox
def test_nothing_but_tmp_can_be_written_and_it_does_not_outlive_the_run() -> None:
    code = """
for path in ("/tmp/x", "/x", "/usr/x", "/dev/x", "/dev/shm/x", "/etc/x", "/box/x"):
    try:
        open(path, "w").write("here")
        print(path)
    except OSError:
        pass
"""
    assert run(code).stdout == b"/tmp/x\n"
    assert run("import os; print(os.listdir('/tmp'))").stdout == b"[]\n"


@needs_sandbox
def test_there_is_no_network_of_any_kind() -> None:
    code = """
import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 16, 17, 38, 40):
    try:
        opened = socket.socket(family, socket.SOCK_STREAM if family not in (16, 17) else 3)
        target = "/run/docker.sock" if family == socket.AF_UNIX else ("127.0.0.1", 80)
        opened.connect(("::1", 80) if family == socket.AF_INET6 else target)
        print("connected", family)
    except OSError as error:
        print(family.real, type(error).__name__)
try:
    socket.getaddrinfo("example.org", 80)
except OSError:
    print("no names")
"""
    lines = run(code).stdout.decode().splitlines()
    assert len(lines) == 8 and not [line for line in lines if "connected" in line]
    # netlink, packet, crypto and vsock sockets cannot even be made
    assert all("PermissionError" in line for line in lines[3:7]), lines


@needs_sandbox
@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",
        "libc.setns(0, 0)",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.shmget(0, 2**20, 0o1600)",
        "libc.memfd_create(b'x', 0)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0)",
        "libc.syscall(321, 0, 0, 0)",  # bpf; on other machines some call that takes no such thing
        "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) if os.uname().machine == 'x86_64' else -1",
    ],
)
def test_system_calls_that_no_exercise_needs_are_refused(call: str) -> None:
    code = f"import ctypes, os; libc = ctypes.CDLL(None); print({call})"
    assert run(code).stdout == b"-1\n"


@needs_sandbox
def test_a_fork_bomb_is_held_and_ended() -> None:
    outcome = run(
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", seconds=1, processes=16
    )
    assert (outcome.end, outcome.status) == ("timeout", None)
    counted = """
import os, time
made = 0
try:
    while os.fork():
        made += 1
    time.sleep(60)
except OSError:
    print(made)
"""
    assert 5 < int(run(counted, processes=16).stdout) <= 15


@needs_sandbox
def test_memory_is_limited_for_one_process_and_for_all() -> None:
    alone = run("x = bytearray(2 * 10**9)", memory_mb=256)
    assert alone.status == 1 and b"MemoryError" in alone.stderr
    together = "import os, time\n[os.fork() for _ in range(3)]\nx = b'1' * 10**8\ntime.sleep(60)"
    assert run(together, memory_mb=256).end == "memory"
    shared = "import mmap, os, time\nx = mmap.mmap(-1, 2 * 10**8)\nx.write(b'1' * 10**8)\n"
    shared += "os.fork(); os.fork()\nx[:10**8] = b'2' * 10**8\ntime.sleep(60)"
    assert run(shared, memory_mb=350).end == "memory"


@needs_sandbox
def test_files_are_limited_in_size_and_number() -> None:
    one = run("open('/tmp/x', 'wb').write(b'1' * 64 * 2**20)")
    assert one.status == 1 and b"File too large" in one.stderr
    many = "for i in range(64): open(f'/tmp/{i}', 'wb').write(b'1' * 2**20)"
    assert b"No space left" in run(many).stderr
    empty = "import os\ni = 0\nwhile True:\n  os.close(os.open(f'/tmp/{i}', 65)); i += 1"
    assert run(empty).end == "files"


@needs_sandbox
def test_output_and_time_are_limited() -> None:
    flood = run("while True: print('x' * 1000)", output_kb=64)
    assert flood.end == "output" and len(flood.stdout) <= 64 * 1024
    closed = "import os\nos.close(1); os.close(2)\nwhile True: pass"
    busy = run(closed, seconds=1)
    assert busy.status != 0 and busy.seconds < 30


@needs_sandbox
def test_the_parent_cannot_be_harmed_and_nothing_goes_on_after_the_end() -> None:
    attack = """
import os, signal
for target in (1, os.getppid(), -1):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        try:
            os.kill(target, number)
        except OSError:
            pass
print("still here")
"""
    assert run(attack).stdout == b"still here\n"
    marker = f"selfkd-left-{os.getpid()}"
    left = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    os.execv("/usr/bin/env", ["env", "sleep", "1000", {marker!r}])
time.sleep(0.2)
"""
    assert run(left).status == 0
    time.sleep(0.2)
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert marker not in [line for line in lines.splitlines() if "sleep" in line]


def test_without_bubblewrap_it_refuses_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda n, **k: None if n == "bwrap" else which(n, **k))
    with pytest.raises(UsageError, match="apt-get install bubblewrap"):
        Sandbox().check()


@needs_sandbox
def test_where_namespaces_are_blocked_it_refuses_and_says_how_to_allow_them() -> None:
    code = "from selfkd.sandbox.box import Sandbox\nSandbox().check()"
    blocked = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", blocked, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if "unshare failed" in done.stderr:
        pytest.skip("this user may not make a user namespace to block them in")
    assert "UsageError: bubblewrap cannot make a sandbox here" in done.stderr
    assert "sysctl kernel.unprivileged_userns_clone=1" in done.stderr


@needs_sandbox
def test_an_old_bubblewrap_and_a_wrong_interpreter_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no Python interpreter"):
        Sandbox(python="/usr/bin/env").check()
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UsageError, match=r"0\.4 cannot limit files; 0\.7 is the first"):
        Sandbox().check()


# -- tests of programs ----------------------------------------------------------------------------


@needs_sandbox
def test_tests_pass_and_fail_one_by_one() -> None:
    report = report_of(
        "def f(x): return x + 1", "assert f(1) == 2", "assert f(1) == 3, f(1)", "f()"
    )
    assert report.reasons[:2] == ["", "AssertionError: 2"]
    assert report.reasons[2].startswith("TypeError: f() missing 1 required")
    assert (report.passed, report.end) == (1, "exit")


FORGERIES = {
    "ends early": "import sys; sys.exit(0)",
    "ends early, hard": "import os; os._exit(0)",
    "ends when called": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit when called": "import sys\ndef f(x): sys.exit(0)",
    "equals everything": "class E:\n  def __eq__(s, o): return True\ndef f(x): return E()",
    "changes equality of ints": (
        "class E(int):\n  def __eq__(s, o): return True\n  __hash__ = None\ndef f(x): return E(7)"
    ),
    "redefines what the test calls": "def abs(x): return 0\ndef f(x): return 7",
    "replaces a module": (
        "class M:\n  def isclose(s, *a): return True\nmath = M()\ndef f(x): return 7"
    ),
    "changes builtins": "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 7",
    "subtracts to nothing": (
        "class E:\n  def __sub__(s, o): return 0\n  __rsub__ = __sub__\n"
        "  def __lt__(s, o): return True\ndef f(x): return E()"
    ),
    "writes results itself": (
        "import os, json\nfor fd in range(64):\n"
        '  try: os.write(fd, b\'{"test": 0, "reason": ""}\\n\')\n  except OSError: pass\n'
        "def f(x): return 7"
    ),
    "kills the tests": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "looks for the answer": (
        "import gc, sys\ndef f(x):\n  for frame in sys._current_frames().values():\n"
        "    while frame:\n      if 42 in frame.f_locals.values(): return 42\n"
        "      frame = frame.f_back\n  return 7"
    ),
    "sends a forged class": (
        "import os, pickle\nclass R:\n  def __reduce__(s): return eval, ('42',)\n"
        "data = pickle.dumps(('value', R(), ()))\n"
        "for fd in range(64):\n"
        "  try: os.write(fd, len(data).to_bytes(8, 'big') + data)\n  except OSError: pass\n"
        "def f(x): return 7"
    ),
}


@needs_sandbox
@pytest.mark.parametrize("trick", FORGERIES)
def test_a_program_cannot_pass_but_by_what_it_returns(trick: str) -> None:
    tests = ("import math\nassert abs(f(1) - 42) < 1e-6 and math.isclose(f(1), 42)",)
    report = report_of(FORGERIES[trick], "assert f(1) == 42", "assert 42 in [f(1)]", *tests)
    assert report.passed == 0, report.reasons


@needs_sandbox
def test_forms_of_tests() -> None:
    right = "def add(a, b): return a + b"
    check = (
        "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == {}"
    )
    unit = "import unittest\nclass T(unittest.TestCase):\n  def test(self):\n"
    unit += "    self.assertEqual(add(1, 2), {})"
    pytests = "def test_add():\n    assert add(1, 2) == {}"
    for form in (check, unit, pytests):
        for number, passed in ((3, 1), (0, 1), (4, 0)):
            source = form.format(0 if form is check and number == 3 else number)
            if form is not check and number == 0:
                continue
            assert report_of(right, source, entry_point="add").passed == passed, (source, number)


@needs_sandbox
def test_objects_of_the_program_can_be_used_in_tests() -> None:
    program = """
class Stack:
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self):
        if not self.items: raise Empty("nothing left")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): yield from self.items
    def __eq__(self, other): return self.items == other.items
class Empty(LookupError): pass
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
def pairs():
    yield from ((1, "a"), (2, "b"))
def reverse(items): items.reverse()
"""
    tests = """
stack = Stack(1).push((2, 3))
assert len(stack) == 2 and list(stack) == [1, (2, 3)] and stack.items == [1, (2, 3)]
assert stack == Stack(1, (2, 3)) and stack != Stack() and 1 in stack
assert stack.pop() == (2, 3) and stack.pop() == 1
try:
    stack.pop()
    assert False, "no error"
except Empty as error:
    assert str(error) == "nothing left" and isinstance(error, LookupError)
first = Node(1)
assert Node(2, first).next is first and first.next is None
assert dict(pairs()) == {1: "a", 2: "b"} and next(pairs()) == (1, "a")
items = [1, 2, 3]
reverse(items)
assert items == [3, 2, 1]
"""
    assert report_of(program, tests).reasons == [""]


@needs_sandbox
def test_values_of_the_standard_library_cross() -> None:
    program = """
import datetime
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
P = namedtuple("P", "a b")
def f():
    return [P(1, 2), Counter("aab"), deque([1]), OrderedDict(a=1), Decimal("1.5"), Fraction(1, 3),
            defaultdict(int, {1: 2}), datetime.date(2020, 1, 1), 1j, {1, 2}, frozenset([1]),
            range(3), float("inf"), b"x", None, True]
"""
    test = """
import datetime
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
assert f() == [(1, 2), Counter("aab"), deque([1]), OrderedDict(a=1), Decimal("1.5"),
    Fraction(1, 3), {1: 2}, datetime.date(2020, 1, 1), 1j, {1, 2}, frozenset([1]), range(3),
    float("inf"), b"x", None, True]
"""
    assert report_of(program, test).reasons == [""]


@needs_sandbox
def test_programs_that_read_and_write_and_functions_by_data() -> None:
    box = Sandbox()
    double = "n = int(input())\nprint(n * 2, ' ')"
    report = run_tests(box, double, Tests(scripts=[("2\n", "4\n"), ("3", "7"), ("x", "0")]))
    assert report.reasons[0] == "" and report.reasons[1] == "wrote '6  \\n', not '7'"
    assert report.reasons[2].startswith("status 1, wrote ''")
    calls: list[Any] = [([1, 2], [1, 2]), ([1, 2], [2, 1]), ([[], {}], [[], {}])]
    pair = "class Solution:\n    def pair(self, a, b): return a, b"
    report = run_tests(box, pair, Tests(calls=calls, entry_point="pair"))
    assert report.reasons == ["", "AssertionError: (1, 2) is not [2, 1]", ""]


@needs_sandbox
def test_expected_output_never_enters_the_sandbox() -> None:
    snoop = """
import os, glob
print([open(p).read() for p in glob.glob("/box/**/*", recursive=True) if os.path.isfile(p)
       and "EXPECTED" in open(p).read().replace("EXP" + "ECTED", "", 1)], os.listdir("/tmp"))
"""
    report = run_tests(Sandbox(), snoop, Tests(scripts=[("", "EXPECTED")]))
    assert "wrote '[] []\\n'" in report.reasons[0]


@needs_sandbox
def test_faults_of_the_tests_are_not_the_programs() -> None:
    with pytest.raises(ValueError, match="the tests do not compile"):
        report_of("def f(x): return x", "assert f(")
    with pytest.raises(ValueError, match="cannot be given to another process"):
        report_of("def f(x): return x", "assert f(lambda: 1)")
    report = report_of("def f(x: return x", "assert f(1) == 1")
    assert report.reasons[0].startswith("SyntaxError")


@needs_sandbox
def test_what_passed_before_a_limit_counts() -> None:
    program = "def f(x):\n    while x: pass\n    return x"
    report = report_of(
        program, "assert f(0) == 0", "assert f(1) == 1", "assert f(0) == 1", seconds=1
    )
    assert report.reasons[0] == "" and report.passed == 1
    flood = "def f(x):\n    while x: print('x' * 1000)\n    return x"
    report = report_of(flood, "assert f(0) == 0", "assert f(1) == 1")
    assert (report.reasons, report.end) == (["", "limit: output"], "output")
