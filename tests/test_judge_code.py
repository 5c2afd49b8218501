"""The judge `code`: which tests it finds, what it takes for the program, and its verdicts."""

import json
from typing import Any

import pytest

from selfkd.errors import UsageError
from selfkd.judges import code as judge_code
from selfkd.judging import JudgeSpec
from selfkd.records import Prompt, Sample, Verdict
from tests.sandboxes import needs_sandbox

ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def sample(completion: str, finish: Any = "stop", **columns: Any) -> Sample:
    return Sample("s", Prompt.of("write add", **columns), 0, completion, finish=finish)


def judged(
    completion: str, columns: dict[str, Any], finish: Any = "stop", **options: Any
) -> Verdict:
    return JudgeSpec("code", options).build()(sample(completion, finish, **columns))


@pytest.mark.parametrize(
    ("completion", "entry", "program"),
    [
        ("x = 1", "", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "", "x = 1\n"),
        ("```\na\n```\nthen\n```py\nb\n```", "", "b\n"),
        ("```python\ndef add(): 1\n```\nUse:\n```python\nprint(2)\n```", "add", "def add(): 1\n"),
        ("```python\ncut off", "", "cut off"),
        ("say `x` then ``` inline", "", "say `x` then ``` inline"),
    ],
)
def test_the_program_in_a_completion(completion: str, entry: str, program: str) -> None:
    assert judge_code.extract(completion, entry) == program


HUMAN_EVAL = {
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3",
    "entry_point": "add",
}
FORMS: list[dict[str, Any]] = [
    {"tests": ASSERTS},
    {"tests": "\n".join(ASSERTS)},
    {"tests": json.dumps(ASSERTS)},
    HUMAN_EVAL,
    {"test_list": ["assert add(one, 2) == 3"], "test_setup_code": "one = 1"},
    {"input_output": json.dumps({"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"})},
]


@needs_sandbox
@pytest.mark.parametrize("columns", FORMS, ids=lambda c: "-".join(c))
def test_tests_in_the_forms_that_data_sets_have(columns: dict[str, Any]) -> None:
    right = judged(f"Sure!\n```python\n{ADD}```", columns)
    assert (right.reward, right.status) == (1, "ok") and right.rationale.startswith("passed")
    wrong = judged(ADD.replace("+", "-"), columns)
    assert wrong.reward == 0 and "AssertionError" in wrong.rationale


@needs_sandbox
def test_a_program_that_reads_and_writes() -> None:
    columns = {"tests": {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}}
    program = "print(sum(int(x) for x in open(0).read().split()))"
    assert judged(program, columns).reward == 1
    assert judged("print(3)", columns).reward == 0
    half = judged("print(3)", columns, partial=True)
    assert (half.reward, half.rationale) == (0.5, "passed 1 of 2; test 2: wrote '3\\n', not '7'")


@needs_sandbox
def test_a_prefix_comes_before_the_completion() -> None:
    columns = {**HUMAN_EVAL, "prompt": 'import math\ndef add(a, b):\n    """Add."""\n'}
    assert judged("    return math.fsum([a, b])", columns, prefix="prompt").reward == 1
    assert judged("    return math.fsum([a, b])", columns).reward == 0


@needs_sandbox
def test_what_cannot_pass_gets_nothing_and_the_reason() -> None:
    columns = {"tests": ASSERTS}
    assert judged(ADD, columns, "length").rationale == "length"
    assert judged(ADD, columns, "length", truncated="read").reward == 1
    assert judged(" \n", columns).rationale == "no_answer"
    early = judged("import sys\nsys.exit(0)", columns)
    assert (early.reward, early.status) == (0, "ok") and "SystemExit" in early.rationale
    spin = judged("def add(a, b):\n    while True: print('x' * 999)", columns, output_kb=16)
    assert (spin.reward, spin.rationale) == (0, "passed 0 of 2; test 1: limit: output")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no tests in its column tests"),
        ({"tests": []}, "no tests"),
        ({"tests": 7}, "no tests in its column tests"),
        ({"tests": ["add(1, 2)"]}, "asserts nothing: 'add"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "shorter"),
    ],
)
def test_prompts_without_usable_tests_are_an_error(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged(ADD, columns)


def test_it_compares_with_gold_and_says_before_a_run_that_there_is_no_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert JudgeSpec("code").gold
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match=r"apt-get install bubblewrap|another interpreter"):
        JudgeSpec("code", {"seconds": 7}).check_ready()
