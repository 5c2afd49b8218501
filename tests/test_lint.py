"""`make lint` as one of the tests: it takes half a minute, in which the other core has work."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.lengthy

ROOT = Path(__file__).parents[1]


def test_lint() -> None:
    # Whoever runs tests has been set up.
    command = ["make", "--old-file=setup", "lint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
