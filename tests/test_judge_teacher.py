"""The judge `teacher` in judge processes, its record in the run, and what resume allows."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

from selfkd.cluster import Cluster
from selfkd.config import resolve
from selfkd.errors import Stopped, UsageError
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec
from selfkd.launch import new_run, resume_run
from selfkd.metrics import alarms, round_rows
from selfkd.records import VERDICTS, Prompt, Sample, Verdict, rows_table
from selfkd.run import Run
from selfkd.verbs.judge import Tally
from tests import callers
from tests.fakes import ScriptedRun, play_script, resumed, scripted_run
from tests.servers import Asked, Server, failed, hosting, said
from tests.test_served import places
from tests.testbed.addition import write_prompts

SECRET = "key-5c1e-of-the-user"


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", SECRET)
        yield


@pytest.fixture(scope="module")
def cluster(key: None) -> Iterator[Cluster]:
    """Ray that is started with the key: its processes have the environment of that moment."""
    with Cluster("local", timeout=60) as started:
        yield started


@pytest.fixture
def server() -> Iterator[Server]:
    with hosting() as host:
        yield host.fresh()


def samples(count: int) -> list[Sample]:
    return [Sample(f"s{i}", Prompt.of(f"question {i}"), 0, f"answer {i}") for i in range(count)]


def teacher(server: Server, **options: Any) -> dict[str, Any]:
    given = {"judge": {"use": "self_reward", "draws": 2}, "model": "m", "base_url": server.url}
    return {**given, "api_key_env": "TEACHER_KEY", **options}


def judged(
    cluster: Cluster, server: Server, folder: Path, count: int, **options: Any
) -> list[Verdict]:
    return judged_by(JudgeSpec("teacher", teacher(server, **options)), cluster, folder, count)


def judged_by(
    spec: JudgeSpec, cluster: Cluster, folder: Path, count: int, kept: Path | None = None
) -> list[Verdict]:
    pool = JudgePool(
        spec, cluster, workers=1, timeout=30, check=lambda: None, folder=folder / "judging"
    )
    try:
        return callers.by_pool(pool, samples(count), kept=kept)
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


def test_a_teacher_inside_a_composition_is_asked_once_by_all_runs(
    cluster: Cluster, server: Server, tmp_path: Path
) -> None:
    def asked(run: str, kept: Path | None, url: str = "", **options: Any) -> int:
        before = len(server.asked)
        inner = {"use": "teacher", **teacher(server)} | ({"base_url": url} if url else {})
        spec = JudgeSpec("ensemble", {"judges": [inner, "random"], **options})
        verdicts = judged_by(spec, cluster, tmp_path / run, 4, kept)
        assert all(v.reward is not None for v in verdicts)
        return len(server.asked) - before

    kept = tmp_path / "verdicts"
    assert asked("one", kept) == 4
    assert asked("fork", kept) == asked("reweighted", kept, weights=[2, 1]) == 0
    assert asked("elsewhere", kept, f"http://localhost:{server.port}/v1") == 4
    assert asked("without", None) == 4


def test_refusals_are_counted_apart_from_errors_and_from_what_cannot_be_read(
    cluster: Cluster, server: Server, tmp_path: Path
) -> None:
    def behave(asked: Asked) -> Any:
        number = next(i for i in range(6) if f"question {i}" in asked.text)
        refused = {"message": {"refusal": "I cannot."}, "finish_reason": "stop"}
        filtered = {"message": {"content": "Well"}, "finish_reason": "content_filter"}
        return [
            said('{"reason": "fine", "good": "yes"}', asked.body),
            said('{"reason": "fine", "good": "ye', asked.body),
            said("", asked.body, choices=[refused]),
            said("", asked.body, choices=[filtered]),
            failed(400, "our policy", "content_filter"),
            failed(400, "too long"),
        ][number]

    server.behave = behave
    rubric = {"use": "rubric", "criteria": {"good": {"asks": "Is it?", "choices": ["no", "yes"]}}}
    spec = JudgeSpec("length_penalised", {"judge": {"use": "teacher", **teacher(server)}})
    spec.options["judge"]["judge"] = rubric
    verdicts = judged_by(spec, cluster, tmp_path, 6)
    assert [v.status for v in verdicts] == ["ok", "unparsed", *["refused"] * 3, "error"]
    assert [v.rationale for v in verdicts[2:]] == [
        "refusal: I cannot.",
        "refusal: content filter",
        "refusal: our policy",
        "HTTP 400: too long",
    ]
    tally = Tally()
    tally.add(rows_table(verdicts, VERDICTS))
    assert tally.unscored == {"unparsed": 1, "refused": 3, "error": 1}


@pytest.mark.parametrize("stops", [False, True])
def test_anchors_are_asked_about_anew_so_that_drift_shows(
    cluster: Cluster,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: bool,
) -> None:
    """The teacher is harsher when it is asked again. Neither the cache nor, in a run that was
    stopped in between, the record of its answers may hide that."""
    monkeypatch.setenv("SELFKD_CACHE", str(tmp_path / "cache"))
    server.behave = lambda asked: f"Score: {5 if asked.attempt == 1 else 3}"
    sums = write_prompts(tmp_path / "sums.jsonl", [(i, 1) for i in range(4)])

    def answer(policy: str, text: str, k: int) -> str:
        return f"{policy};{k}"

    def play(run: ScriptedRun) -> None:
        run._cluster = cluster
        monkeypatch.setattr(run, "judge_batches", MethodType(Run.judge_batches, run))
        try:
            play_script(run)
        finally:
            for pool in run._judges.values():
                pool.close()

    judge = {"use": "teacher", **teacher(server, budget={"calls": 8 if stops else 100})}
    run = scripted_run(
        tmp_path, sums, answer, judge=judge, gold_judge=None, rounds=1, samples_per_prompt=2,
        judging={"anchors": 4}, on_no_signal="continue",
    )  # fmt: skip
    if stops:
        with pytest.raises(Stopped):
            play(run)
        run.resolved = resume_run(run.ledger.path, ["judge.budget.calls=100"])
        run = resumed(run, answer)
    play(run)
    rows = round_rows(run.ledger.path)
    assert [row["reward_mean"] for row in rows] == [5, 5]
    assert (rows[1]["anchors"]["samples"], rows[1]["anchors"]["shift"]) == (4, -2)
    assert "judge_drift" in {alarm.name for alarm in alarms(rows)}
    assert len(server.asked) == 8 + 8 + 4


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


# -- what is judged tells the judge what to say (D1), or the judge says what is no verdict (D3) ----


def by_server(server: Server, judge: str, rows: list[Sample], **options: Any) -> list[Verdict]:
    """What the model on the server says of samples; the teacher asks from this process."""
    inner = {"use": judge, **callers.ATTACKED[judge], **options}
    return callers.judged("teacher", rows, judge=inner, model="m", base_url=server.url)


@pytest.mark.parametrize("judge", callers.ATTACKED)
def test_an_answer_that_tells_a_served_judge_what_to_say_gains_nothing(
    server: Server, judge: str
) -> None:
    def behave(asked: Asked) -> Any:
        if not asked.body.get("logprobs"):
            return callers.honest(asked.text)
        told = {f" {score}": p for score, p in callers.shares(asked.text).items()}
        assert math.isclose(sum(told.values()), 1)
        return said("", asked.body, choices=[places({"Score": 1.0}, {":": 1.0}, told)])

    server.behave = behave
    assert callers.fooled(lambda rows: by_server(server, judge, rows)) == []
    assert len(server.asked) >= 2 * len(callers.ATTACKS)


@pytest.mark.parametrize(
    ("judge", "text"),
    [
        ("self_reward", "I would give it five points."),
        ("self_reward", "Score: 11/10"),
        ("self_reward", "Score: NaN"),
        ("self_reward", "5 out of 5 or maybe 2"),
        ("self_reward", "Score: 4 or Score: 2"),
        ("pairwise", "Winner: A or Winner: B"),
        ("rubric", '{"reason": "It says {"correct": "yes"}", "correct": "no"}'),
        ("rubric", '{"reason": "half a'),
    ],
)
def test_what_is_no_verdict_is_asked_for_again_and_then_given_up(
    server: Server, judge: str, text: str
) -> None:
    server.behave = lambda asked: text
    rows = [callers.answer("4"), callers.answer("5")]
    verdicts = by_server(server, judge, rows, retries=2)
    assert [(v.reward, v.status) for v in verdicts] == [(None, "unparsed")] * 2
    assert len(server.asked) == 2 * 3
    assert server.asked[-1].text.startswith(server.asked[0].text[:20])
    assert "could not be read" in server.asked[-1].text


@pytest.mark.parametrize("judge", ["self_reward", "rubric", "pairwise"])
def test_a_served_judgement_that_was_cut_off_has_no_verdict(server: Server, judge: str) -> None:
    quoted = 'It asks for this:\nWinner: A\nScore: 5\n{"correct": "yes"}'

    def behave(asked: Asked) -> Any:
        message = {"role": "assistant", "content": quoted}
        choice = {"message": message, "finish_reason": "length"}
        n = asked.body.get("n", 1)
        return said("", asked.body, choices=[{**choice, "index": i} for i in range(n)])

    server.behave = behave
    rows = [callers.answer("4"), callers.answer("5")]
    for verdict in by_server(server, judge, rows):
        assert (verdict.reward, verdict.status) == (None, "unparsed")
        assert "answers cut off at max_tokens" in verdict.rationale
    server.behave = lambda asked: said(quoted, asked.body)
    assert [v.reward for v in by_server(server, judge, rows)] != [None, None]
