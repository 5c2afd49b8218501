"""A round sampled beside the training before it: what is recorded, and that both go on at once."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import UsageError
from selfkd.training.base import TrainJob, TrainReport
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts


@pytest.fixture
def run(tmp_path: Path) -> ScriptedRun:
    """Four rounds of ReST-EM, every answer right."""
    sums = write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34), (5, 5)])
    return scripted_run(
        tmp_path, sums, right, rounds=3, samples_per_prompt=30, engine={"overlap": True}
    )


def right(policy: str, text: str, k: int) -> str:
    return str(eval(text[:-1])) if k else "none"


def writers(run: ScriptedRun) -> list[str]:
    """The policy that wrote each round's samples."""
    return [policy for policy, _ in run.asked][::90]


def step_of(run: ScriptedRun, round: int) -> dict[str, Any]:
    (path,) = run.ledger.round_dir(round).glob("*-generate")
    return json.loads((path / "step.json").read_text())


def files(run: ScriptedRun) -> dict[str, bytes]:
    paths = run.ledger.path.glob("rounds/*/*/[0-9]*.parquet")
    return {str(p.relative_to(run.ledger.path)): p.read_bytes() for p in paths}


def trained_slowly(run: ScriptedRun, until: Callable[[TrainJob], bool]) -> None:
    """Make each training wait for something that only goes on beside it."""
    train = run.train

    def slowly(job: TrainJob, follow: Any) -> TrainReport:
        deadline = time.monotonic() + 60
        while not until(job):
            assert time.monotonic() < deadline, "nothing went on beside the training"
            time.sleep(0.01)
        return train(job, follow)

    run.train = slowly  # type: ignore[method-assign]


def sampled_ahead(run: ScriptedRun) -> Callable[[TrainJob], bool]:
    """Whether all samples of the next round are there; the last training has no next one."""

    def there(job: TrainJob) -> bool:
        number = len(run.jobs) + 1
        shards = list(run.ledger.round_dir(number).glob("*-generate/[0-9]*.parquet"))
        return number == 3 or len(shards) == 2

    return there


def test_the_next_round_is_sampled_beside_the_training_by_the_policy_before(run):
    trained_slowly(run, sampled_ahead(run))
    play_script(run)
    assert writers(run) == ["base", "base", "round-1", "round-3"]
    assert [step_of(run, i)["args"].get("behind", 0) for i in range(4)] == [0, 1, 1, 0]
    starts = [Path(job.start_path).name for job in run.jobs]
    assert len(starts) == 3 and set(starts) == {"model"}


def test_a_resumed_run_finds_what_was_sampled_ahead(run):
    play_script(run)
    again = resumed(run, right)
    play_script(again)
    assert again.asked == [] and files(again) == files(run)


def test_a_training_that_fails_loses_nothing_sampled_beside_it(run):
    def fail(job: TrainJob, follow: Any) -> TrainReport:
        raise RuntimeError("the trainer died")

    run.train = fail
    with pytest.raises(RuntimeError, match="the trainer died"):
        play_script(run)
    assert writers(run) == ["base", "base"]
    before = files(run)
    again = resumed(run, right)
    play_script(again)
    assert writers(again) == ["round-1", "round-3"]
    assert before.items() <= files(again).items()


def test_a_policy_that_has_yet_to_sample_is_not_let_go(tmp_path):
    def cut(policy: str, text: str, k: int) -> str:
        if policy == "round-1":
            raise RuntimeError("the sampler died")
        return right(policy, text, k)

    sums = write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34), (5, 5)])
    settings = {"rounds": 3, "samples_per_prompt": 30, "keep_policies": 1}
    run = scripted_run(tmp_path, sums, cut, engine={"overlap": True}, **settings)
    with pytest.raises(RuntimeError, match="the sampler died"):
        play_script(run)
    assert (run.ledger.path / "policies" / "round-002" / "MANIFEST.json").exists()
    again = resumed(run, right)
    play_script(again)
    assert writers(again) == ["round-1", "round-3"]


def test_a_loop_that_asks_for_something_else_is_told(run):
    from selfkd.objectives import SFT
    from selfkd.rules import correct

    rounds = run.rounds(2)
    first = next(rounds)
    kept = first.keep(first.judge(first.generate(run.prompts, n=4), run.judge), correct())
    first.train(SFT(kept))
    with pytest.raises(UsageError, match=r"4 samples a prompt.*5 samples a prompt"):
        next(rounds).generate(run.prompts, n=5)
