"""`selfkd run loops/star.yaml rounds=... model=... prompts=my.jsonl judge=my_judge.py:score`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.testbed.addition import draw, hinted, prompt, scratchpad, write_prompts
from tests.testbed.charmodel import train_base

pytestmark = pytest.mark.lengthy

LOOPS = Path(__file__).parents[2] / "loops"

JUDGE = '''\
def score(sample):
    """1 for the right sum."""
    return float(sample.completion.split(";")[-1] == sample.answer)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: their model, prompts and judge."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(1)

    def batch() -> list[tuple[str, str]]:
        sums = draw(32, rng, [1], set())
        return [(prompt(*s), scratchpad(*s)) for s in sums[:16]] + [
            (hinted(*s), scratchpad(*s)) for s in sums[16:]
        ]

    train_base(folder / "model", batch, steps=150, seed=1)
    write_prompts(folder / "my.jsonl", draw(60, rng, [1, 2], set()))
    (folder / "my_judge.py").write_text(JUDGE)
    return folder


def selfkd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfkd", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)


def test_a_shipped_config_runs_on_ones_own_model_prompts_and_judge(folder):
    done = selfkd(
        folder, "run", str(LOOPS / "star.yaml"), "rounds=2", "model=model", "prompts=my.jsonl",
        "judge=my_judge.py:score", "gold_judge=my_judge.py:score", "shots=[]", "hint='[{answer}]'",
        "engine.kind=transformers", "engine.residency=swap", "train.lora_rank=8",
        "gate.mode=off", "--name", "mine",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "take turns" in done.stdout  # the run says that it swaps sampler and trainer
    rounds = json.loads(selfkd(folder, "curves", "mine", "--json").stdout)["rounds"]
    assert [r["policy"] for r in rounds] == ["base", "round-1", "round-2"]
    assert rounds[0]["samples"] == 54 and rounds[0]["heldout_scored"] == 6
    assert [r["train"]["steps"] for r in rounds[:2]] == [12, 14]
    assert "\x1b[" not in done.stdout  # not a terminal: no colours


def test_a_judge_that_fails_too_often_stops_the_run_and_is_named(folder, warm_ray):
    (folder / "bad.py").write_text("def judge_it(sample):\n    return 1 / 0\n")
    done = selfkd(
        folder, "run", str(LOOPS / "raw.yaml"), "rounds=1", "model=model", "prompts=my.jsonl",
        "judge=bad.py:judge_it", "engine.kind=transformers", "prompts.limit=16",
        "samples_per_prompt=2", "report_to=[]", f"cluster={warm_ray.address}", "--name", "bad",
    )  # fmt: skip
    assert done.returncode == 4
    assert "judge_it" in done.stderr and "ZeroDivisionError" in done.stderr
    assert "selfkd resume runs/bad" in done.stderr
    # A fixed judge is another judge: it is refused before anything starts, and a fork takes it.
    (folder / "bad.py").write_text("def judge_it(sample):\n    return 1.0\n")
    again = selfkd(folder, "resume", "bad")
    assert again.returncode == 2 and "fork" in again.stderr
    assert "the code of judge bad.py:judge_it" in again.stderr
