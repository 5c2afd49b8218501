"""The commands that judge, decide or sample again, typed as a user types them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from selfkd import assembly
from selfkd.launch import read_run
from selfkd.metrics import round_rows
from selfkd.rundir import round_steps
from tests.commandline import carried_out
from tests.conftest import byte_tokenizer
from tests.testbed.chain import chain_model
from tests.testbed.inprocess import InProcess

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "runs" / "example"
SHORT = '''
def short(sample, *, limit: int = 12):
    """1 for a short completion."""
    return float(len(sample.completion) <= limit)
'''

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Type:
    """Carries a command out in a folder with a copy of the example run: code, output, errors."""
    shutil.copytree(EXAMPLE, tmp_path / "runs" / "example")
    (tmp_path / "mine.py").write_text(SHORT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assembly, "Cluster", InProcess)

    def carry_out(*arguments: str) -> tuple[int, str, str]:
        said = carried_out(monkeypatch, capfd, *arguments)
        return said.code, said.out, said.err

    return carry_out


def contents(path: Path) -> dict[str, bytes]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_rejudge_has_another_judge_score_what_is_recorded(typed: Type, tmp_path: Path) -> None:
    example = tmp_path / "runs" / "example"
    before, old = contents(example), round_rows(example)
    code, out, err = typed("rejudge", "example", "--judge", "mine.py:short", "limit=20")
    fork = tmp_path / "runs" / "example-rejudged-001"
    assert code == 0 and f"judged again, are in {fork.relative_to(tmp_path)}" in out, err
    assert "selfkd compare runs/example runs/example-rejudged-001" in out
    assert contents(example) == before
    rows = round_rows(fork)
    assert [r["samples"] for r in rows] == [r["samples"] for r in old]
    assert [r["heldout_reward"] for r in rows] == [r["heldout_reward"] for r in old]
    assert rows[0]["reward_mean"] != old[0]["reward_mean"] and rows[0]["agreement"]["samples"]
    raw, head = read_run(fork)
    assert raw["judge"] == {"use": f"{tmp_path / 'mine.py'}:short", "limit": 20}
    assert raw["gold_judge"] == "number" and head["parent"]["run"] == "example"
    # A name of one's own, events in place of curves, and what is refused.
    named = ("rejudge", "example", "--judge", "mine.py:short", "--name", "mine")
    code, out, _ = typed(*named, "--json")
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert code == 0 and {"run_started", "round_row", "run_finished"} <= {*events}
    assert round_rows(tmp_path / "runs" / "mine")[0]["reward_mean"] < rows[0]["reward_mean"]
    assert typed(*named)[0] == 2  # the name is taken
    code, _, err = typed("rejudge", "example", "--judge", "mine.py:short", "limt=3")
    assert code == 2 and "did you mean limit?" in err
    assert typed("rejudge", "example", "--judge", "nobody")[0] == 2
    assert typed("rejudge", "nowhere", "--judge", "number")[0] == 2


def test_refilter_decides_anew_by_the_recorded_verdicts(typed: Type, tmp_path: Path) -> None:
    example = tmp_path / "runs" / "example"
    before, old = contents(example), round_rows(example)
    rules = "finished | correct | at_most(1)"
    code, out, err = typed("refilter", "runs/example", "--rules", rules)
    fork = tmp_path / "runs" / "example-refiltered-001"
    assert code == 0 and f"are in {fork.relative_to(tmp_path)}" in out, err
    assert contents(example) == before
    rows = round_rows(fork)
    assert [r["reward_mean"] for r in rows] == [r["reward_mean"] for r in old]
    coverage = [r["coverage"] * 64 for r in old if r["kept"] is not None]
    assert [r["kept"] for r in rows if r["kept"] is not None] == pytest.approx(coverage)
    assert rows[0]["kept"] < old[0]["kept"] and rows[0]["train"] is None
    assert read_run(fork)[1]["parent"]["again"] == {"rules": rules}
    code, _, _ = typed("refilter", "example", "--rules", "best_worst", "--name", "pairs")
    assert code == 0 and round_rows(tmp_path / "runs" / "pairs")[0]["pairs"]["pairs"] > 0
    code, _, err = typed("refilter", "example", "--rules", "corect")
    assert code == 2 and "did you mean 'correct'" in err
    assert typed("refilter", "example")[0] == 2  # which rules?


def test_forecast_samples_a_config_once_and_resume_goes_on_from_there(
    typed: Type, tmp_path: Path
) -> None:
    digits = dict.fromkeys("0123456789", 0.1)
    says = {"\n": digits, **dict.fromkeys("0123456789", {"<|im_end|>": 0.9} | digits)}
    model = chain_model(tmp_path / "model", byte_tokenizer(), says)
    config = [
        str(ROOT / "loops" / "rest_em.yaml"), f"model={model}", "prompts.options.max_digits=1",
        "prompts.per_round=6", "prompts.heldout=4", "sampling.max_tokens=8", "rounds=1",
        "engine.kind=transformers", "engine.dtype=float32", "train.dtype=float32", "report_to=[]",
        "on_no_signal=continue",
    ]  # fmt: skip
    code, out, err = typed("forecast", *config, "--name", "first", "--json")
    row = json.loads(out)
    run = tmp_path / "runs" / "first"
    assert code == 0 and Path(row["path"]) == run.relative_to(tmp_path), err
    assert (row["round"], row["prompts"], row["samples"], row["gold"]) == (0, 6, 48, "number")
    assert row["teacher"] is not None  # what it knows when it is shown the reference
    done = [step.verb for step in round_steps(run, 0) if step.finished]
    assert "judge" in done and "train" not in done and not [*run.glob("policies/*")]
    sampled = contents(run / "rounds")
    # Of the run that there is now the figures are the same, and nothing is sampled.
    code, out, _ = typed("forecast", "first", "--round", "0", "--json")
    again = json.loads(out)
    assert code == 0 and {k: again[k] for k in row if k != "path"} == {
        k: v for k, v in row.items() if k != "path"
    }
    assert typed("forecast", "first", "rounds=2")[0] == 2  # a run is as it is recorded
    code, _, err = typed("resume", "first")
    assert code == 0, err
    went_on = contents(run / "rounds")
    assert {name: went_on[name] for name in sampled} == sampled
    assert "train" in [step.verb for step in round_steps(run, 0) if step.finished]
    # For a person it says how to go on.
    code, out, _ = typed("forecast", *config, "--name", "second")
    assert code == 0 and "Nothing is trained yet" in out and "selfkd resume runs/second" in out
