"""The code is linted, formatted and typed: `make lint`, as one of the tests so that it has a core.

It takes half a minute, which the other worker uses.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lengthy

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("tool", [("ruff", "check"), ("ruff", "format", "--check"), ("pyright",)])
def test_lint(tool: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", *tool, *(["."] if tool[0] == "ruff" else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
