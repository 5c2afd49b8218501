"""The tests' process: runs each test of a job against the program and says how it went."""

import builtins
import importlib
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

from selfkd.sandbox.inside.handles import Broken, Handle, Program
from selfkd.sandbox.inside.wire import SOLUTION, digest

LONGEST = 8 * 2**20
"""Bytes of output of one run that are read; a program that writes more is wrong."""


class Session:
    """All tests of one program; each has a line of result, with a mark that cannot be guessed."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._out = os.dup(1)
        os.dup2(2, 1)  # what tests print is no result
        self._names: dict[str, Any] = {}

    def run(self) -> None:
        """Run everything."""
        self._say(ready=True)
        job = self._job
        tests = [(self._source, text) for text in job["sources"]]
        tests += [(self._call, call) for call in job["calls"]]
        reason = self._attempt(self._load, job["code"]) if tests else ""
        for number, (run, test) in enumerate(tests):
            self._say(test=number, reason=reason or self._attempt(run, test))
        for number, text in enumerate(job["inputs"], len(tests)):
            output, status = _script(text)
            self._say(test=number, digest=digest(output), shown=output[:200], status=status)
        self._say(done=True)

    def _say(self, **result: Any) -> None:
        os.write(self._out, (self._job["nonce"] + json.dumps(result) + "\n").encode())

    def _attempt(self, run: Callable[[Any], None], test: Any) -> str:
        """Why a test fails, or nothing."""
        try:
            run(test)
        except Broken as error:
            self._say(broken=str(error))
            return "broken"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:500]
        return ""

    def _load(self, code: str) -> None:
        """Start the program. A name of Python's own means the same in tests as ever."""
        found = Program().ask("load", (code,))
        for name, value in found.items():
            if isinstance(value, Handle) and name in sys.stdlib_module_names:
                self._names[name] = importlib.import_module(name)
            elif not hasattr(builtins, name) or name == self._job["entry_point"]:
                self._names[name] = value

    def _source(self, text: str) -> None:
        """Bare asserts, a function check(candidate), test functions or TestCases."""
        entry = self._job["entry_point"]
        names = {**self._names, "__name__": "tests"}
        if entry:
            names["candidate"] = self._entry(entry)
        before = dict(names)
        try:
            code = [compile(t, "tests.py", "exec") for t in (self._job["setup"], text)]
        except SyntaxError as error:
            raise Broken(f"the tests do not compile: {error}") from None
        for part in code:
            exec(part, names)
        made = {k: v for k, v in names.items() if v is not before.get(k)}
        if entry and isinstance(made.get("check"), types.FunctionType):
            made["check"](names["candidate"])
        for key, value in made.items():
            if isinstance(value, type) and hasattr(value, "assertEqual"):
                _unittest(value)
            elif key.startswith("test_") and isinstance(value, types.FunctionType):
                value()

    def _entry(self, name: str) -> Any:
        """The function that is tested, or the method of a class Solution."""
        if name not in self._names and "Solution" in self._names:
            return getattr(self._names["Solution"](), name)
        if name not in self._names:
            raise NameError(f"the program has no {name}")
        return self._names[name]

    def _call(self, test: tuple[list[Any], Any]) -> None:
        args, expected = test
        value = self._entry(self._job["entry_point"])(*args)
        assert _same(value, expected), f"{value!r} is not {expected!r}"


def _unittest(case: type) -> None:
    import unittest  # it is slow to import, and few tests need it

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    for _, text in result.errors + result.failures:
        raise AssertionError(text.strip().splitlines()[-1])


def _same(value: Any, expected: Any) -> bool:
    """Whether a result is what JSON says it should be."""
    if isinstance(expected, list):
        fits = isinstance(value, list | tuple) and len(value) == len(expected)
        return fits and all(map(_same, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        value = {str(k): v for k, v in value.items()}
        return value.keys() == expected.keys() and all(_same(value[k], expected[k]) for k in value)
    return type(value) is not Handle and value == expected


def _script(text: str) -> tuple[str, int]:
    """Output and status of the program, run as a script with this standard input."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode("utf-8", "replace"))
        stdin.seek(0)
        command = [sys.executable, "-I", "-B", SOLUTION]
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE)
    assert process.stdout
    output = process.stdout.read(LONGEST + 1)
    if len(output) > LONGEST:
        process.kill()
    return output.decode("utf-8", "replace"), process.wait()


def main() -> None:
    """Run the job on standard input."""
    Session(json.loads(sys.stdin.buffer.read())).run()
