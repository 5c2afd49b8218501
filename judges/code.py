"""The completion's code passes the prompt's tests, run in a sandbox without network or files.

Tests are a column of the prompt, in one of these forms:

- Python text, or a list of it: asserts, a function `check(candidate)` (HumanEval), `test_...`
  functions, `unittest` classes; each text is one test;
- `{"inputs": [...], "outputs": [...]}`, also as JSON text: what the program reads and writes, or
  with `"fn_name"` the arguments and results of a function (APPS, LiveCodeBench).

The tests run in another process than the code, which gets no say in what passes. Where there is no
sandbox (bubblewrap) the judge refuses to run.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions
from selfkd.sandbox.box import Limits, Sandbox
from selfkd.sandbox.testing import Tests, run_tests

_FENCE = re.compile(r"^```[^\n]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)
_COLUMNS = ("tests", "test", "test_list", "input_output")


class CodeOptions(JudgeOptions):
    """Options of the judge `code`."""

    tests: str = ""
    """Column with the tests; default: the first of tests, test, test_list, input_output."""
    setup: str = "test_setup_code"
    """Column with Python text that runs before each test; may be absent."""
    entry_point: str = "entry_point"
    """Column with the name of the function that is tested; may be absent."""
    prefix: str = ""
    """Column with code that the completion goes on from, such as imports and a signature."""
    partial: bool = False
    """Give the share of tests that pass; without it all must."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""
    python: str = ""
    """Interpreter to run it with, packages included; default: selfkd's own, without packages."""
    seconds: int = Field(10, ge=1)
    """Processor time of each process; on the clock three times as much."""
    memory_mb: int = Field(1024, ge=64)
    """Memory in all, MB."""
    processes: int = Field(32, ge=4)
    """Processes and threads at once."""
    disk_mb: int = Field(16, ge=1)
    """Files in /tmp together, MB."""
    output_kb: int = Field(256, ge=1)
    """What program and tests may print together, KB."""


@judge("code", gold=True, ready=lambda options: _sandbox(options).check())
def code(sample: Sample, options: CodeOptions) -> Verdict:
    """The completion's code passes the prompt's tests, run in a sandbox."""
    tests = read_tests(sample.columns, options)
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    program = extract(sample.completion, tests.entry_point)
    if not program.strip():
        return sample.verdict(0.0, rationale="no_answer")
    prefix = str(sample.columns.get(options.prefix) or "") if options.prefix else ""
    report = run_tests(_sandbox(options), f"{prefix}\n{program}" if prefix else program, tests)
    share = report.passed / len(tests)
    first = next((f"; test {i}: {r}" for i, r in enumerate(report.reasons, 1) if r), "")
    said = f"passed {report.passed} of {len(tests)}{first}"
    return sample.verdict(share if options.partial else float(share == 1), rationale=said)


def extract(completion: str, entry_point: str = "") -> str:
    """The last fenced block, of those that name `entry_point` if any does; else all of it."""
    blocks = _FENCE.findall(completion)
    named = [b for b in blocks if entry_point and re.search(rf"\b{re.escape(entry_point)}\b", b)]
    return (named or blocks or [completion])[-1]


def read_tests(columns: Mapping[str, Any], options: CodeOptions) -> Tests:
    """The tests of a prompt; ValueError where it has none."""
    name = options.tests or next((c for c in _COLUMNS if columns.get(c)), "")
    given = _decoded(columns.get(name))
    entry = str(columns.get(options.entry_point) or "")
    if isinstance(given, Mapping) and given.get("inputs"):
        inputs, outputs = list(given["inputs"]), list(given["outputs"])
        cases = list(zip(inputs, outputs, strict=True))
        if entry := str(given.get("fn_name") or ""):
            return Tests(calls=cases, entry_point=entry)
        return Tests(scripts=[(_text(stdin), _text(stdout)) for stdin, stdout in cases])
    sources = [given] if isinstance(given, str) else given
    if not isinstance(sources, list) or {type(s) for s in sources} != {str}:
        raise ValueError(f"the prompt has no tests in its column {name or 'tests'}")
    if silent := [s for s in sources if "assert" not in s]:
        raise ValueError(f"a test of the prompt asserts nothing: {silent[0][:60]!r}")
    return Tests(sources, entry_point=entry, setup=str(columns.get(options.setup) or ""))


def _decoded(value: Any) -> Any:
    """JSON text as what it stands for."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _sandbox(options: CodeOptions) -> Sandbox:
    limits = {name: getattr(options, name) for name in Limits.__dataclass_fields__}
    return _made(Limits(**limits), options.python)


_made = functools.cache(Sandbox)
