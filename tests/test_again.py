"""Recorded samples under another judge and other rules: nothing is sampled, nothing is touched."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from selfkd.again import judge_again, refilter_run, rejudge_run
from selfkd.config import resolve
from selfkd.errors import DataError, UsageError
from selfkd.judging import JudgeSpec
from selfkd.launch import fork_run, read_run, resume_run
from selfkd.ledger import Ledger
from selfkd.metrics import round_rows
from selfkd.prompts import open_prompts
from selfkd.rundir import round_steps
from selfkd.viewer.show import show_samples
from tests.fakes import TOKENIZER, ScriptedRun, Setting, Silent, play_script, scripted_run
from tests.testbed.addition import write_prompts

SHORT = '''
def short(sample, *, limit: int = 2):
    """1 for a short completion."""
    return float(len(sample.completion) <= limit)
'''


def answer(policy: str, prompt: str, index: int) -> str:
    """One right sum in two, in two styles; the trained policy is always right."""
    a, b = prompt.rstrip("=").split("+")
    total = int(a) + int(b) + (index % 2 if policy == "base" else 0)
    return f"1+1=2;{total}" if index > 1 else f"{total}"


def never(policy: str, prompt: str, index: int) -> str:
    raise AssertionError(f"{policy} was asked to complete {prompt}")


def made(folder: Path, loop: str = "rest_em", heldout: int = 4, **settings: Any) -> ScriptedRun:
    (folder / "mine.py").write_text(SHORT)
    prompts = write_prompts(folder / "sums.jsonl", [(i + 10, 12) for i in range(12)])
    settings = {"rounds": 1, "samples_per_prompt": 4} | settings
    settings["prompts"] = {"source": str(prompts), "fresh": False, "heldout": heldout}
    run = scripted_run(folder, prompts, answer, loop=loop, name="first", **settings)
    play_script(run)
    return run


def opened(path: Path, answers: Any = never, offered: Path | None = None) -> ScriptedRun:
    """The run in `path` as its command would open it, but for its processes."""
    resolved, folder = resume_run(path), path.parents[1]
    source = open_prompts(resolved.config.prompts, seed=resolved.config.seed, base=folder)
    setting = Setting(folder / "model", TOKENIZER, "transformers", False, 96, 0, 0)
    ledger, cluster = Ledger(path, offered=offered), None
    parts: Any = (ledger, cluster, setting, source, Silent(), lambda: None)
    return ScriptedRun(resolved, *parts, answer=answers)


def carried_out(path: Path) -> list[dict[str, Any]]:
    run = opened(path)
    judge_again(run)
    run.finish()
    assert run.jobs == []
    return round_rows(path)


def contents(path: Path) -> dict[str, str]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def spec(folder: Path, **options: Any) -> JudgeSpec:
    return JudgeSpec(f"{folder / 'mine.py'}:short", options)


def test_another_judge_scores_the_same_samples(tmp_path: Path) -> None:
    path = made(tmp_path).ledger.path
    before, old = contents(path), round_rows(path)
    fork, notes = rejudge_run(path, spec(tmp_path, limit=3), None)
    rows = carried_out(fork)
    assert contents(path) == before
    assert notes == [] and fork.name == "first-rejudged-001"
    names = [s.path.name for s in round_steps(fork, 0)]
    assert names == [
        "01-prompts-heldout", "02-generate-heldout", "03-judge-heldout", "04-prompts",
        "05-generate", "06-judge", "07-judge-audit", "08-keep", "09-round",
    ]  # fmt: skip
    assert [r["samples"] for r in rows] == [r["samples"] for r in old] == [32, 32]
    assert [r["reward_mean"] for r in rows] == [0.5, 0.5]  # half of the samples are bare numbers
    assert [r["reward_mean"] for r in old] == [0.5, 1.0]
    # Held-out figures are those of the old judge, and the new one is held against it.
    assert [r["heldout_reward"] for r in rows] == [r["heldout_reward"] for r in old]
    assert rows[0]["agreement"]["auc"] == 0.5 and rows[0]["agreement"]["samples"] == 32
    # The recorded rule decided anew.
    assert rows[0]["kept"] == 16 and rows[0]["dropped"] == {"incorrect": 16}
    assert old[0]["kept"] == 16 and rows[0]["train"] is None
    shown = {s["sample_id"]: s for s in show_samples(fork, 0, limit=100)}
    assert all(s["kept"] == (len(s["completion"]) <= 3) for s in shown.values())
    assert shown.keys() == {s["sample_id"] for s in show_samples(path, 0, limit=100)}
    raw, head = read_run(fork)
    assert (
        head["parent"]["run"] == "first"
        and head["parent"]["created"] == read_run(path)[1]["created"]
    )
    assert head["parent"]["again"]["judge"]["limit"] == 3
    assert raw["judge"]["limit"] == 3 and raw["gold_judge"].endswith(":right")


def test_a_fork_that_was_killed_goes_on(tmp_path: Path) -> None:
    path = made(tmp_path).ledger.path
    fork, _ = rejudge_run(path, spec(tmp_path), "other")
    carried_out(fork)
    whole = contents(fork / "rounds")
    for name in ("06-judge", "07-judge-audit", "08-keep", "09-round"):
        step = fork / "rounds" / "000" / name
        (step / "manifest.json").unlink()
        if name != "06-judge":
            for file in step.iterdir():
                file.unlink()
            step.rmdir()
    carried_out(fork)
    again = contents(fork / "rounds")
    shards = {name for name in whole if name.endswith(".parquet")}
    assert {name: again[name] for name in shards} == {name: whole[name] for name in shards}


def test_the_policies_themselves_judge_what_they_sampled(tmp_path: Path) -> None:
    path = made(tmp_path).ledger.path
    own = {"draws": 2, "template": "{question}{response}[", "score_pattern": r"^([0-5])",
           "max_tokens": 20, "retries": 0, "unfenced": True}  # fmt: skip
    fork, _ = rejudge_run(path, JudgeSpec("self_reward", own), None)
    asked = []

    def scores(policy: str, prompt: str, index: int) -> str:
        assert prompt.endswith("[")
        asked.append(policy)
        return "5" if ";" in prompt else "1"

    run = opened(fork, scores)
    judge_again(run)
    run.finish()
    rows = round_rows(fork)
    assert [r["reward_mean"] for r in rows] == [3.0, 3.0]
    # Each round's samples are judged by the policy of that round, twice.
    assert sorted(asked) == ["base"] * 64 + ["round-1"] * 64
    assert rows[0]["extra"]["judgements"]["samples"] == 64
    assert rows[0]["agreement"]["auc"] == 0.5


def test_controls_ride_along_where_the_run_has_them(tmp_path: Path) -> None:
    path = made(tmp_path, controls={"per_round": 2}).ledger.path
    rows = carried_out(rejudge_run(path, spec(tmp_path), None)[0])
    assert rows[0]["controls"]["empty"]["failed"] == 2  # it is short
    assert round_rows(path)[0]["controls"]["empty"]["failed"] == 0


def test_other_rules_decide_on_the_recorded_verdicts(tmp_path: Path) -> None:
    path = made(tmp_path).ledger.path
    before = contents(path)
    fork = refilter_run(path, "finished | correct | at_most(1)", None)
    rows = carried_out(fork)
    assert contents(path) == before and fork.name == "first-refiltered-001"
    assert rows[0]["reward_mean"] == round_rows(path)[0]["reward_mean"]
    assert rows[0]["kept"] == 8
    assert rows[0]["dropped"] == {"incorrect": 16, "over 1 a prompt": 8}
    assert read_run(fork)[1]["parent"]["again"] == {"rules": "finished | correct | at_most(1)"}

    pairs = carried_out(refilter_run(path, "best_worst", None))
    assert pairs[0]["pairs"]["pairs"] == 8 and pairs[0]["dropped"] == {"neither best nor worst": 16}


def test_a_loop_that_decides_about_earlier_samples(tmp_path: Path) -> None:
    run = made(tmp_path, "rest", heldout=0, rounds=2, thresholds=[0.0, 0.7])
    path = run.ledger.path
    assert [len([s for s in round_steps(path, n) if s.verb == "generate" and not s.label])
            for n in range(2)] == [1, 0]  # fmt: skip
    rows = carried_out(rejudge_run(path, spec(tmp_path), None)[0])
    # Round 1 decides about the samples of round 0, by their new verdicts.
    assert [r["kept"] for r in rows[:2]] == [24, 24]
    rows = carried_out(refilter_run(path, "above(0.9) | at_most(1)", None))
    assert [r["kept"] for r in rows[:2]] == [12, 12]


def test_what_cannot_be_done_again_is_refused_or_named(tmp_path: Path) -> None:
    run = made(tmp_path)
    path = run.ledger.path
    with pytest.raises(UsageError, match="there is no rule 'corect', did you mean 'correct'"):
        refilter_run(path, "corect", None)
    with pytest.raises(UsageError, match="run 'first' exists"):
        refilter_run(path, "correct", "first")
    with pytest.raises(UsageError, match="not a run directory"):
        rejudge_run(tmp_path, spec(tmp_path), None)
    step = next(path.glob("rounds/000/*-keep/step.json"))
    recorded = json.loads(step.read_text())
    recorded["args"]["rule"] = "finished | novel(0.7)"
    step.write_text(json.dumps(recorded))
    fork, notes = rejudge_run(path, spec(tmp_path), None)
    assert len(notes) == 1 and "novel(0.7)" in notes[0]
    assert carried_out(fork)[0]["kept"] is None
    # Nothing was trained in it, so nothing can go on from it.
    with pytest.raises(UsageError, match=r"holds what another one sampled.*fork first"):
        fork_run(fork, 1, None)
    shard = next(fork.glob("rounds/000/05-generate/manifest.json"))
    shard.unlink()
    with pytest.raises(DataError, match="that was taken over is missing"):
        carried_out(fork)


def test_a_fork_takes_its_first_round_s_samples_along(tmp_path: Path) -> None:
    path = made(tmp_path).ledger.path
    judge = f"judge.use={tmp_path / 'mine.py'}:short"
    fork = fork_run(path, 0, None, [judge, "gold_judge=null", "judge.limit=3"])
    run = opened(fork, answer, offered=path)
    run.loop.fn(run, run.options)
    run.finish()
    policies = [policy for policy, _ in run.asked]
    assert policies.count("base") == 0 and policies.count("round-1") > 0
    assert round_rows(fork)[0]["reward_mean"] == 0.5 and len(run.jobs) == 1

    fork = fork_run(path, 0, None, ["samples_per_prompt=2"])
    run = opened(fork, answer, offered=path)
    run.loop.fn(run, run.options)
    assert [p for p, text in run.asked].count("base") == 16  # held-out is as it was


def test_a_fork_is_offered_nothing_by_a_run_of_another_seed(tmp_path: Path) -> None:
    from selfkd.launch import _origin

    path = made(tmp_path).ledger.path
    for override, offered in (("seed=1", None), ("rounds=3", path)):
        fork = fork_run(path, 0, None, [override])
        raw, head = read_run(fork)
        assert _origin(fork, head["parent"], resolve(raw)) == offered
