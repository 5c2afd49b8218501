"""`selfkd run` on terminals of all kinds, and on none: no traceback, no stray escapes, exit 0.

The command line, the run and its records are real; its sampler and trainer are scripted.
"""

import contextlib
import os
import pty
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.processes import FORKS

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def right(policy: str, text: str, k: int) -> str:
    return str(eval(text[:-1]))


def command(folder: Path, out: str, environment: dict[str, str]) -> None:
    """`selfkd run` in a process of its own, with stdout on the file or terminal `out`."""
    os.environ.update(environment)
    os.setsid()
    sink = os.open(os.devnull if out == "closed" else out, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(os.open(folder / "err.txt", os.O_WRONLY | os.O_CREAT, 0o644), 2)
    if out == "closed":
        os.close(1)
        sys.stdout = None  # as the interpreter finds it
    else:
        sys.stdout = os.fdopen(1, "w")

    from selfkd import assembly, cli
    from selfkd.cluster import ANYWHERE
    from selfkd.ledger import Ledger
    from selfkd.prompts import open_prompts
    from selfkd.setting import Setting
    from tests.fakes import TOKENIZER, ScriptedRun
    from tests.testbed.addition import write_prompts
    from tests.testbed.play import JUDGES

    write_prompts(folder / "sums.jsonl", [(i, 7) for i in range(12)])
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (folder / "run.yaml").write_text(
        f"loop: rest_em\nmodel: {model}\nrounds: 2\njudge: {JUDGES}:right\n"
        f"prompts: {{source: {folder}/sums.jsonl, heldout: 4, fresh: false}}\n"
        "sampling: {max_tokens: 40}\n"
    )

    @contextlib.contextmanager
    def scripted(
        path: Path, resolved: Any, ledger: Ledger, reporter: Any, check: Any, prepared: None
    ) -> Iterator[ScriptedRun]:
        source = open_prompts(resolved.config.prompts, seed=0, base=folder)
        setting = Setting(model, TOKENIZER, "transformers", False, 96, ANYWHERE, ANYWHERE)
        cluster: Any = None
        assembly.announce(path, resolved, reporter, ledger, "transformers")
        yield ScriptedRun(resolved, ledger, cluster, setting, source, reporter, check, answer=right)

    assembly.prepare = lambda resolved: None
    assembly.assemble = scripted
    arguments = ["run", str(folder / "run.yaml"), "--runs", str(folder / "runs"), "--name", "one"]
    sys.argv = ["selfkd", *arguments]
    cli.main()


def start(folder: Path, out: str, **environment: str) -> Any:
    process = FORKS.Process(target=command, args=(folder, out, environment))
    process.start()
    return process


def ended(process: Any, folder: Path) -> None:
    process.join(120)
    said = (folder / "err.txt").read_text()
    assert process.exitcode == 0, said
    assert "Traceback" not in said
    events = (folder / "runs" / "one" / "events.jsonl").read_text()
    assert events.count('"run_finished"') == 1


def on_terminal(folder: Path, columns: int, **environment: str) -> str:
    """What the command writes to a terminal of that width."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, columns))
    process = start(folder, os.ttyname(slave), **environment)
    text = read_while(master, process.is_alive)
    ended(process, folder)
    os.close(slave)
    os.close(master)
    return text


def read_while(fd: int, going: Callable[[], bool]) -> str:
    os.set_blocking(fd, False)
    data = b""
    while True:
        alive = going()
        try:
            data += os.read(fd, 65536)
        except BlockingIOError:
            if not alive:
                return data.decode()
            time.sleep(0.01)


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_of_any_width_without_colour(tmp_path, columns):
    text = on_terminal(tmp_path, columns, TERM="xterm-256color", NO_COLOR="1")
    assert "runs/one" in re.sub(r"\s", "", ESCAPE.sub("", text))
    assert not COLOUR.findall(text)


def test_a_terminal_that_can_do_nothing_gets_plain_lines(tmp_path):
    text = on_terminal(tmp_path, 80, TERM="dumb")
    assert "\x1b" not in text and "selfkd show" in text


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = start(tmp_path, str(tmp_path / "pipe"))
    with open(tmp_path / "pipe", "rb") as reader:
        assert reader.readline()
    ended(process, tmp_path)


def test_no_stdout_at_all(tmp_path):
    ended(start(tmp_path, "closed"), tmp_path)


def test_a_run_ends_by_drawing_its_curves(tmp_path):
    from selfkd.metrics import curves_document
    from selfkd.viewer.plots import terminal_curves

    text = on_terminal(tmp_path, 80, TERM="xterm-256color", NO_COLOR="1", PYTHONUTF8="1")
    document = curves_document(tmp_path / "runs" / "one")
    assert [row["round"] for row in document["rounds"]] == [0, 1, 2]
    curves = terminal_curves([document], width=80, color=False, unicode=True)
    before, _, after = text.replace("\r\n", "\n").rpartition(curves)
    # A row for each round; which steps are seen at work is a matter of when the screen is drawn.
    rows = re.findall(r"^ +(\d)  (base|round-\d) ", ESCAPE.sub("", before), re.MULTILINE)
    assert rows[-3:] == [("0", "base"), ("1", "round-1"), ("2", "round-2")]
    assert "The run is in" in after
