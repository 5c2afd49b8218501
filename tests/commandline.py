"""The command line carried out in the test's process."""

import sys
from dataclasses import dataclass

import pytest

from selfkd import cli


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def carried_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> Result:
    """`selfkd ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["selfkd", *arguments])
    capfd.readouterr()
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capfd.readouterr()
    return Result(code, captured.out, captured.err)
