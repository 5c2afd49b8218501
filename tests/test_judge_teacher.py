"""The judge `teacher` in judge processes, its record in the run, and what resume allows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfkd.cluster import Cluster
from selfkd.config import resolve
from selfkd.errors import Stopped, UsageError
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec
from selfkd.launch import new_run, resume_run
from selfkd.records import Prompt, Sample, Verdict
from tests.servers import Asked, Server, hosting, said

SECRET = "key-5c1e-of-the-user"


@pytest.fixture(scope="module", autouse=True)
def _key() -> Iterator[None]:
    """Set before Ray starts, for its processes have the environment of that moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", SECRET)
        yield


@pytest.fixture
def server() -> Iterator[Server]:
    with hosting() as host:
        yield host.fresh()


def samples(count: int) -> list[Sample]:
    return [Sample(f"s{i}", Prompt.of(f"question {i}"), 0, f"answer {i}") for i in range(count)]


def judged(
    cluster: Cluster, server: Server, folder: Path, count: int, **options: Any
) -> list[Verdict]:
    given = {"judge": {"use": "self_reward", "draws": 2}, "model": "m", "base_url": server.url}
    spec = JudgeSpec("teacher", {**given, "api_key_env": "TEACHER_KEY", **options})
    pool = JudgePool(
        spec, cluster, workers=1, timeout=30, check=lambda: None, folder=folder / "judging"
    )
    try:
        (verdicts,) = pool.judge_batches(iter([samples(count)]))
        return verdicts
    finally:
        pool.close()


def test_a_budget_stops_the_run_and_resuming_pays_for_nothing_twice(
    cluster: Cluster, server: Server, tmp_path: Path
) -> None:
    def behave(asked: Asked) -> Any:
        unreadable = "question 3" in asked.text
        return said("I would rather not." if unreadable else "Good.\nScore: 3", asked.body)

    server.behave = behave
    prices = {"usd_per_million_input": 1000.0, "usd_per_million_output": 1000.0}
    with pytest.raises(Stopped, match=r"used up \(5 of 5 calls"):
        judged(cluster, server, tmp_path, 8, budget={"calls": 5}, **prices)
    assert len(server.asked) == 5
    verdicts = judged(cluster, server, tmp_path, 8, budget={"calls": 50}, **prices)
    assert len(server.asked) == 9  # one was asked again, for it could not be read
    assert [v.reward for v in verdicts] == [3.0] * 3 + [None] + [3.0] * 4
    assert (verdicts[3].status, verdicts[3].judge) == ("unparsed", "teacher")
    # 10 tokens read and 2 x 5 written; what could not be read was paid as well.
    assert [v.cost_usd for v in verdicts] == pytest.approx([0.02] * 3 + [0.04] + [0.02] * 4)
    assert {a.headers["authorization"] for a in server.asked} == {f"Bearer {SECRET}"}
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if SECRET in path.read_text()]


def config(folder: Path, **judge: Any) -> dict[str, Any]:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (folder / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    prompts = {"source": str(folder / "prompts.jsonl"), "fresh": False, "heldout": 0}
    use = {"use": "teacher", "judge": "self_reward", "model": "m", "budget": {"calls": 5}}
    return {"loop": "rest_em", "model": str(model), "prompts": prompts, "judge": {**use, **judge}}


def test_a_budget_may_be_raised_on_resume_but_no_other_model_be_asked(tmp_path: Path) -> None:
    path = new_run(resolve(config(tmp_path)), tmp_path / "runs", "one")
    resumed = resume_run(path, ["judge.budget.calls=50", "judge.base_url=http://other:1/v1"])
    assert resumed.judge.options["budget"] == {"calls": 50}
    assert "calls: 50" in (path / "run.yaml").read_text()
    with pytest.raises(UsageError, match=r"judge.model: 'm' -> 'n'"):
        resume_run(path, ["judge.model=n"])
    with pytest.raises(UsageError, match="another config"):
        resume_run(path, ["judge.judge=rubric"])


def test_a_key_in_the_config_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(config(tmp_path, extra={"api_key": "sk-abcdefgh12345678"}))
    assert "sk-abc" not in str(caught.value)
