"""Runs tests/test_adapters.py with the real verifiers and inspect_ai: `python -m tests.adapters`.

They want other versions of some packages than selfkd is tested with, so they get an environment of
their own, .venv/adapters, that finds everything else in this one.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "selfkd[verifiers,inspect]"


def main() -> int:
    """Make the environment, if it is not there yet, and run the tests in it."""
    own = Path(sys.prefix) / "adapters"
    python = str(own / "bin" / "python")
    whole = own / "whole"
    if not whole.exists():
        venv.create(own, clear=True, with_pip=True)
        (site,) = own.glob("lib/python3*/site-packages")
        # As a line that runs: so the path files of that folder count too.
        shared = sysconfig.get_path("purelib")
        (site / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
        subprocess.run([python, "-m", "pip", "install", "-q", PACKAGES], check=True)
        whole.touch()
    # One that cannot be imported would only have its tests skipped.
    subprocess.run([python, "-c", "import inspect_ai, verifiers.v1"], check=True, cwd=ROOT)
    command = [python, "-m", "pytest", "-q", "-rs", "tests/test_adapters.py"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
