"""Runs a program against tests in a sandbox, and says which it passes and why not."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfkd.sandbox import inside
from selfkd.sandbox.box import Sandbox
from selfkd.sandbox.inside.wire import BOX, SOLUTION, digest
from selfkd.sandbox.watch import End

_START = f"import sys; sys.path.insert(0, {BOX!r})\nfrom selfkd.sandbox.inside import session\n"


@dataclass(frozen=True, slots=True)
class Tests:
    """What a program must do; at least one of `sources`, `calls` and `scripts`."""

    __test__ = False  # it is no test of ours

    sources: Sequence[str] = ()
    """Python text: asserts, `check(candidate)`, test functions or `unittest` classes."""
    calls: Sequence[tuple[Sequence[Any], Any]] = ()
    """Arguments of `entry_point`, and what it returns, as JSON values."""
    scripts: Sequence[tuple[str, str]] = ()
    """Standard input of the program, and what it writes to standard output."""
    entry_point: str = ""
    """Name of the function that is tested."""
    setup: str = ""
    """Python text that runs before each of `sources`."""

    def __len__(self) -> int:
        return len(self.sources) + len(self.calls) + len(self.scripts)


@dataclass(frozen=True, slots=True)
class TestReport:
    """Of each test the reason why it failed, empty where it passed."""

    __test__ = False

    reasons: Sequence[str]
    end: End
    """How the sandbox ended: `exit`, or the limit that was exceeded."""
    stderr: str = field(repr=False, default="")
    """What the program printed."""

    @property
    def passed(self) -> int:
        """Number of tests passed."""
        return sum(not reason for reason in self.reasons)


def run_tests(sandbox: Sandbox, code: str, tests: Tests) -> TestReport:
    """Run `code` against every test, in one run of the sandbox.

    Expected outputs of `scripts` never enter the sandbox; for the rest see `selfkd.sandbox.inside`.
    ValueError where the tests themselves are at fault, RuntimeError where nothing could be run,
    UsageError where there is no sandbox.
    """
    job = {
        "nonce": secrets.token_hex(16),
        "code": code,
        "sources": list(tests.sources),
        "calls": [[list(args), expected] for args, expected in tests.calls],
        "inputs": [stdin for stdin, _ in tests.scripts],
        "entry_point": tests.entry_point,
        "setup": tests.setup,
    }
    outcome = sandbox.run(
        [sandbox.python, "-I", "-B", "-c", f"{_START}session.main()"],
        stdin=json.dumps(job).encode(),
        files={**_harness(), SOLUTION: code.encode("utf-8", "replace")},
    )
    said = _lines(outcome.stdout, job["nonce"])
    stderr = outcome.stderr.decode("utf-8", "replace")
    if not any("ready" in line for line in said):
        last = (stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise RuntimeError(f"the tests did not start in the sandbox ({outcome.end}): {last}")
    for line in said:
        if "broken" in line:
            raise ValueError(f"the tests cannot be run: {line['broken']}")
    reasons = [_missing(outcome.end)] * len(tests)
    first_script = len(tests) - len(tests.scripts)
    for line in (line for line in said if "test" in line):
        number = line["test"]
        if number < first_script:
            reasons[number] = line["reason"]
        else:
            reasons[number] = _compared(line, tests.scripts[number - first_script][1])
    return TestReport(reasons, outcome.end, stderr)


def _harness() -> dict[str, bytes]:
    """The package that runs inside, and the empty packages around it."""
    folder = Path(inside.__file__).parent
    files = {f"{BOX}/selfkd/__init__.py": b"", f"{BOX}/selfkd/sandbox/__init__.py": b""}
    for path in sorted(folder.glob("*.py")):
        files[f"{BOX}/selfkd/sandbox/inside/{path.name}"] = path.read_bytes()
    return files


def _lines(stdout: bytes, nonce: str) -> list[dict[str, Any]]:
    lines = stdout.decode("utf-8", "replace").split("\n")
    return [json.loads(line[len(nonce) :]) for line in lines[:-1] if line.startswith(nonce)]


def _missing(end: End) -> str:
    return "ended before the tests did" if end == "exit" else f"limit: {end}"


def _compared(line: dict[str, Any], expected: str) -> str:
    if line["digest"] == digest(expected):
        return ""
    failed = f"status {line['status']}, " if line["status"] else ""
    return f"{failed}wrote {line['shown']!r}, not {expected[:200]!r}"
