"""Plays a small scripted run and breaks it at its writes: `python -m tests.faults FOLDER EVERY`.

Sampler and trainer are scripted, so every end of the run must be the same byte by byte. One JSON
line a fault, at every EVERY-th change of a file (at each of them: EVERY = 1):

- `kill`: what is on disk right before the change is what a SIGKILL would leave there. It is copied,
  and the run is resumed from the copy.
- `full`, where FOLDER is a file system of its own: it is full from that change on, until the run
  has failed; then it is resumed.
- `read-only`, likewise: once, and at the start.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfkd.errors import SelfkdError
from selfkd.launch import execute
from selfkd.locks import RunLock
from selfkd.repair import check_run
from tests.fakes import ScriptedRun, Silent, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""Audit events of what changes a folder; opening a file to write is one more."""
MADE = ("rounds/*/*/*.parquet", "policies/*/*")


class Changes:
    """Calls `at(number)` before each change of a file under `root`."""

    def __init__(self) -> None:
        self.root = Path("/nowhere")
        self.at: Callable[[int], None] | None = None
        self.count = 0
        sys.addaudithook(self._hook)  # for the life of this process

    def watch(self, root: Path, at: Callable[[int], None]) -> None:
        self.root, self.at, self.count = root, at, 0

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.at is None or not (event == "open" or event in CHANGES):
            return
        writes = event != "open" or (isinstance(args[2], int) and args[2] & os.O_ACCMODE)
        if writes and str(args[0]).startswith(str(self.root)):
            self.count += 1
            at, self.at = self.at, None  # what a fault itself writes is no change of the run's
            at(self.count)
            self.at = at


def answer(policy: str, text: str, k: int) -> str:
    """The sum, now and then."""
    a, b = text.rstrip("=").split("+")
    return str(int(a) + int(b) + (k + len(policy)) % 2)


def open_run(folder: Path) -> ScriptedRun:
    """A run of two rounds and a held-out set that has not begun yet."""
    folder.mkdir(parents=True)
    train = write_prompts(folder / "train.jsonl", [(1, 2), (12, 34)])
    heldout = write_prompts(folder / "heldout.jsonl", [(5, 6)])
    prompts = {"source": str(train), "heldout_source": str(heldout), "fresh": False}
    return scripted_run(
        folder, train, answer, prompts=prompts, rounds=2, samples_per_prompt=2, name="run"
    )


def play(run: ScriptedRun) -> tuple[int, str]:
    """As the command line does: locked, recorded, ending with a code and a text."""
    try:
        with RunLock(run.ledger.path):
            play_script(run)
            run.emit("run_finished")
    except SelfkdError as error:
        return error.exit_code, str(error)
    except Exception:
        return 1, traceback.format_exc()
    return 0, ""


def made(run: Path) -> dict[str, str]:
    """Digests of what a run made."""
    files = [file for pattern in MADE for file in run.glob(pattern)]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def tell(kind: str, number: int, run: ScriptedRun, expected: dict[str, str], **facts: Any) -> None:
    """Resume a run that met a fault, and print what came of it."""
    path = run.ledger.path
    before = made(path)
    resumable, why = play(resumed(run, answer))
    after = made(path)
    facts |= {
        "kind": kind,
        "number": number,
        "resumed": resumable,
        "why": why,
        "changed": [
            n
            for n in before
            if after.get(n) != before[n] and "/." not in n and not n.endswith("/README.md")
        ],
        "differs": sorted(n for n in {*after, *expected} if after.get(n) != expected.get(n)),
        "problems": [f"{p.path}: {p.what}" for p in check_run(path)],
    }
    print(json.dumps(facts), flush=True)


def killed(folder: Path, every: int, changes: Changes) -> dict[str, str]:
    """Resume what a kill at each change would leave; what an undisturbed run makes."""
    run = open_run(folder / "origin")
    path = run.ledger.path

    def copy(number: int) -> None:
        if number % every == 0:
            shutil.copytree(path, folder / str(number) / "runs" / "run")

    changes.watch(path, copy)
    assert play(run) == (0, "")
    changes.at = None
    expected = made(path)
    for number in range(every, changes.count + 1, every):
        shutil.copytree(folder / "origin" / "model", folder / str(number) / "model")
        run.ledger.path = folder / str(number) / "runs" / "run"
        tell("kill", number, run, expected)
        shutil.rmtree(folder / str(number))
    return expected


def filled(folder: Path, every: int, changes: Changes, expected: dict[str, str]) -> None:
    """Let each change meet a full disk."""
    ballast = folder / "ballast"
    number = code = every
    while code:
        run = open_run(folder / str(number))

        def fill(seen: int) -> None:
            if seen == number:  # noqa: B023
                fill_up(ballast)

        changes.watch(run.ledger.path, fill)
        code, said = play(run)
        changes.at = None
        ballast.unlink(missing_ok=True)
        tell("full", number, run, expected, code=code, said=said)
        shutil.rmtree(folder / str(number))
        number += every


def fill_up(ballast: Path) -> None:
    """Leave no room on the file system of `ballast`."""
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass


def write_protected(folder: Path) -> None:
    """Start a run whose folder cannot be written."""
    run = open_run(folder / "protected")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        execute(run.ledger.path, run.resolved, Silent())
        code, said = 0, ""
    except SelfkdError as error:
        code, said = error.exit_code, str(error)
    started = sorted({"ray", "vllm"} & sys.modules.keys())
    print(json.dumps({"kind": "read-only", "code": code, "said": said, "started": started}))


def main(folder: Path, every: int) -> None:
    changes = Changes()
    expected = killed(folder / "kill", every, changes)
    if os.path.ismount(folder):
        filled(folder, every, changes, expected)
        write_protected(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
