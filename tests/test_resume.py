"""A run killed with SIGKILL in each of its verbs loses nothing that was recorded.

Real Ray, a real engine and trainer on the character model, through the command line; the judge is
a user's own file, found from another working directory.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.testbed.addition import draw, prompt, scratchpad, write_prompts
from tests.testbed.charmodel import train_base

JUDGE = """\
import json, time
from pathlib import Path

LOG = Path(__file__).with_name("judged.txt")

def generous(sample):
    time.sleep(0.004)
    with LOG.open("a") as file:
        file.write(sample.id + "\\n")
    return 1.0
"""

CONFIG = """\
loop: rest_em
model: {model}
prompts: {{source: train.jsonl, heldout_source: heldout.jsonl, fresh: false}}
judge: my_judge.py:generous
gold_judge: my_judge.py:generous
rounds: 2
samples_per_prompt: 8
sampling: {{max_tokens: 40}}
engine: {{kind: transformers, dtype: float32, max_num_seqs: 64, max_model_len: 96}}
train: {{learning_rate: 1.0e-3, batch_size: 8, epochs: 6, dtype: float32}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: config, prompts, judge and a model."""
    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    sums = draw(96, rng, [1, 2], set())
    write_prompts(folder / "train.jsonl", sums[:64])
    write_prompts(folder / "heldout.jsonl", sums[64:])

    def batch() -> list[tuple[str, str]]:
        return [(prompt(*s), scratchpad(*s)) for s in draw(16, rng, [1, 2], set())]

    model = train_base(folder / "model", batch, steps=40, seed=0)
    (folder / "my_judge.py").write_text(JUDGE)
    (folder / "run.yaml").write_text(CONFIG.format(model=model))
    return folder


def start(project: Path, elsewhere: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "selfkd", *arguments, "--json"]
    log = (elsewhere / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=elsewhere, stdout=log, stderr=log)


def wait_for(process: subprocess.Popen[bytes], seen: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.005)


def snapshot(run: Path) -> dict[str, str]:
    """Digest of every committed shard and manifest."""
    files = [*run.glob("rounds/*/*/[0-9]*.parquet"), *run.glob("rounds/*/*/manifest.json")]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rows(run: Path, pattern: str, columns: list[str]) -> list[dict[str, Any]]:
    files = sorted(run.glob(f"rounds/{pattern}/[0-9]*.parquet"))
    return [row for f in files for row in pq.read_table(f, columns=columns).to_pylist()]


def orphans(marker: str) -> list[str]:
    """Command lines of live processes that mention `marker` (a Ray session does, in its paths)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marker in text:
                found.append(text)
    return found


def test_sigkill_in_every_verb_loses_nothing(project, tmp_path):
    run = tmp_path / "runs" / "killed"
    log = tmp_path / "log.txt"

    def recorded(pattern: str) -> Callable[[], bool]:
        return lambda: bool(list(run.glob(f"rounds/{pattern}")))

    def trained_a_step() -> bool:
        return any("loss" in p.read_text() for p in run.glob("rounds/000/*-train/log.jsonl"))

    moments = [
        ("evaluating the base", recorded("000/*-judge-heldout/step.json")),
        ("generating", recorded("000/*-generate/00001.parquet")),
        ("judging", recorded("000/*-judge/00003.parquet")),
        ("keeping", recorded("000/*-keep/step.json")),
        ("training", trained_a_step),
        ("evaluating", recorded("001/*-generate-heldout/00000.parquet")),
    ]  # fmt: skip
    states: list[tuple[str, dict[str, str], set[object], int]] = []
    arguments = ["run", str(project / "run.yaml"), "--name", "killed"]
    for moment, reached in moments:
        process = start(project, tmp_path, *arguments)
        wait_for(process, reached, log)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        judged = {v["sample_id"] for v in rows(run, "*/*-judge*", ["sample_id"])}
        calls = (project / "judged.txt").read_text().split() if judged else []
        states.append((moment, snapshot(run), judged, len(calls)))
        arguments = ["resume", "runs/killed"]
    process = start(project, tmp_path, *arguments)
    assert process.wait(timeout=600) == 0, log.read_text()[-3000:]

    final = snapshot(run)
    calls = (project / "judged.txt").read_text().split()
    for moment, before, judged, position in states:
        changed = [name for name, digest in before.items() if final.get(name) != digest]
        assert not changed, f"killed while {moment}: {changed}"
        assert not judged & set(calls[position:]), f"judged twice after a kill while {moment}"

    for number in range(3):
        ids = [r["id"] for r in rows(run, f"{number:03d}/*-generate", ["id"])]
        scored = [r["sample_id"] for r in rows(run, f"{number:03d}/*-judge", ["sample_id"])]
        assert len(ids) == len(set(ids)) == 64 * 8
        assert sorted(scored) == sorted(ids)
    policies = sorted(p.name for p in (run / "policies").iterdir())
    assert policies == ["round-001", "round-002"]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert events[-1]["event"] == "run_finished"
    assert orphans(str(tmp_path)) == []


def test_a_changed_config_is_refused_with_the_difference(project, tmp_path):
    process = start(
        project, tmp_path, "run", str(project / "run.yaml"), "--name", "one", "rounds=1"
    )
    assert process.wait(timeout=600) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    before = snapshot(tmp_path / "runs" / "one")

    again = subprocess.run(
        [sys.executable, "-m", "selfkd", "run", str(project / "run.yaml"), "--name", "one",
         "--resume", "rounds=1", "samples_per_prompt=4"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 2
    assert "samples_per_prompt: 8 -> 4" in again.stderr and "selfkd fork" in again.stderr

    taken = subprocess.run(
        [sys.executable, "-m", "selfkd", "run", str(project / "run.yaml"), "--name", "one"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert taken.returncode == 2 and "--resume" in taken.stderr and "fork" in taken.stderr
    assert snapshot(tmp_path / "runs" / "one") == before

    # A fork takes the change, and shares what came before.
    process = start(project, tmp_path, "fork", "runs/one", "--round", "1", "rounds=2",
                    "samples_per_prompt=4", "--name", "two")  # fmt: skip
    assert process.wait(timeout=600) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    shared = {k: v for k, v in before.items() if k.startswith("rounds/000")}
    forked = snapshot(tmp_path / "runs" / "two")
    assert shared.items() <= forked.items()
    assert len(rows(tmp_path / "runs" / "two", "001/*-generate", ["id"])) == 64 * 4


def test_one_sigint_stops_in_order_and_resume_finishes(project, tmp_path):
    run, log = tmp_path / "runs" / "stopped", tmp_path / "log.txt"
    process = start(
        project, tmp_path, "run", str(project / "run.yaml"), "--name", "stopped", "rounds=1"
    )
    wait_for(process, lambda: bool(list(run.glob("rounds/000/*-generate/00001.parquet"))), log)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 3
    assert "selfkd resume runs/stopped" in log.read_text()
    time.sleep(1)
    assert orphans(str(tmp_path)) == []
    before = snapshot(run)
    process = start(project, tmp_path, "resume", "runs/stopped")
    assert process.wait(timeout=600) == 0, log.read_text()[-3000:]
    assert before.items() <= snapshot(run).items()
