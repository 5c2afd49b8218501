"""The distillation loops build the data their papers say, on worked examples."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from selfkd.cluster import ANYWHERE
from selfkd.config import load
from selfkd.distillation import GKD
from selfkd.errors import DataError, UsageError
from selfkd.metrics import round_rows
from selfkd.records import Example, read_rows
from selfkd.trainers import Trainers
from selfkd.views import context, principles
from tests.fakes import TOKENIZER, ScriptedRun, play_script, resumed, scripted_run
from tests.servers import Asked, hosting, said
from tests.test_loops import decode
from tests.testbed.addition import write_prompts
from tests.testbed.charmodel import char_tokenizer

ANSWERS = {"1+2=": "3", "12+34=": "46", "5+5=": "10"}
BATCH = {"batch_size": 1, "epochs": 1}


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34), (5, 5)])


def taught(run: ScriptedRun, round: int, label: str = "") -> list[tuple[str, str, str]]:
    """(prompt, completion, prompt the teacher sees) that a training learnt from, sorted."""
    pattern = f"*-train-{label}" if label else "??-train"
    (step,) = run.ledger.round_dir(round).glob(pattern)
    rows = read_rows(pq.read_table(step / "00000.parquet"), Example)
    return sorted(
        (
            decode(list(r.prompt_tokens)),
            decode(list(r.completion_tokens)),
            decode(list(r.teacher_prompt_tokens or r.prompt_tokens)),
        )
        for r in rows
    )


def summary(run: ScriptedRun, round: int, step: str) -> dict[str, Any]:
    (path,) = run.ledger.round_dir(round).glob(step)
    return json.loads((path / "manifest.json").read_text())["summary"]


def other_model(folder: Path) -> Path:
    """A model directory with the testbed's tokenizer."""
    path = folder / "other"
    char_tokenizer().save_pretrained(path)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"other weights")
    return path


def test_gkd_mixes_own_samples_with_the_teachers(tmp_path) -> None:
    prompts = write_prompts(tmp_path / "many.jsonl", [(i, j) for i in range(8) for j in range(8)])
    path = other_model(tmp_path)

    def answer(policy: str, text: str, k: int) -> str:
        return {"teacher": "1", "base": "2"}.get(policy, "3")

    run = scripted_run(
        tmp_path, prompts, answer, loop="gkd", rounds=1, teacher=str(path),
        on_policy_fraction=0.25, kind="tvd", train=BATCH,
    )  # fmt: skip
    play_script(run)
    rows = taught(run, 0)
    own = [c for _, c, _ in rows if c == "2"]
    assert len(rows) == 64 and len({q for q, _, _ in rows}) == 64
    assert 6 <= len(own) <= 26 and all(c in "12" for _, c, _ in rows)
    (job,) = run.jobs
    assert (Path(str(job.ref_path)), job.objective) == (path, "gkd")
    assert job.objective_options["kind"] == "tvd" and job.objective_options["teacher"] == "teacher"
    assert summary(run, 0, "??-train")["writers"] == {"base": len(own), "teacher": 64 - len(own)}


@pytest.mark.parametrize(("fraction", "learnt"), [(1.0, "7"), (0.0, "3")])
def test_gkd_on_policy_or_on_the_data(tmp_path, sums, fraction, learnt) -> None:
    run = scripted_run(
        tmp_path, sums, lambda *a: "7", loop="gkd", rounds=1, teacher="base", off_policy="given",
        on_policy_fraction=fraction,
    )  # fmt: skip
    play_script(run)
    assert taught(run, 0)[0] == ("1+2=", learnt, "1+2=")
    assert run.jobs[0].ref_path == run.jobs[0].start_path


def test_gkd_goes_back_to_stored_samples(tmp_path, sums) -> None:
    def answer(policy: str, text: str, k: int) -> str:
        return "7" if policy == "base" else "8"

    run = scripted_run(
        tmp_path, sums, answer, loop="gkd", rounds=2, teacher="base", off_policy="stored",
        on_policy_fraction=0.0, train={"epochs": 1},
    )  # fmt: skip
    play_script(run)
    assert taught(run, 0) == taught(run, 1) != []
    assert summary(run, 1, "??-train")["writers"] == {"base": 3}
    assert summary(run, 1, "??-train")["staleness"] == 1 + 0  # a step to round-1, none since


def test_a_teacher_need_not_be_asked_again_about_stored_samples(
    tmp_path, sums, monkeypatch
) -> None:
    plain = ScriptedRun.train

    def train(run: ScriptedRun, job: Any, follow: Any) -> Any:
        if job.states:
            Path(job.states.out).write_bytes(b"")  # as a trainer leaves one
        return plain(run, job, follow)

    monkeypatch.setattr(ScriptedRun, "train", train)

    def files(name: str, **more: Any) -> list[Any]:
        settings = {"off_policy": "stored", "on_policy_fraction": 0.0, "rounds": 3} | more
        run = scripted_run(tmp_path, sums, lambda *a: "7", name=name, loop="gkd", **settings)
        play_script(run)
        return [job.states for job in run.jobs]

    one, two, three = files("base", teacher="base")
    assert (one.known, two.known, three.known) == ((), (one.out,), (one.out, two.out))
    assert "rounds/000" in one.out and Path(one.out).parent.name.endswith("-train")
    assert [s.known for s in files("previous", teacher="previous")] == [()] * 3  # never the same
    assert files("own", teacher="base", on_policy_fraction=1.0) == [None] * 3
    assert files("given", teacher="base", off_policy="given")[1].known


def test_samples_are_fresh_after_each_sync(tmp_path, sums) -> None:
    def answer(policy: str, text: str, k: int) -> str:
        return {"base": "1", "round-1+1": "2", "round-1+2": "3", "round-1": "4"}.get(policy, "9")

    def settings() -> dict[str, Any]:
        return {"loop": "gkd", "rounds": 2, "teacher": "base", "steps_per_sync": 1, "train": BATCH}

    run = scripted_run(tmp_path, sums, answer, name="syncs", **settings())
    play_script(run)
    assert [c for label in ("", "sync-1", "sync-2") for _, c, _ in taught(run, 0, label)] == [
        "1", "2", "3",
    ]  # fmt: skip
    first, second, third = run.jobs[:3]
    assert {Path(j.start_path).name for j in run.jobs[:3]} == {"model"}
    stretches = [j.stretch for j in run.jobs[:3]]
    assert [(s.first, s.total) for s in stretches if s] == [(0, 3), (1, 3), (2, 3)]
    assert first.stretch and first.stretch.state_from is None
    assert second.stretch and "round-001+1" in str(second.stretch.state_from)
    assert third.stretch and third.stretch.state_to is None
    assert Path(run.jobs[3].start_path).name == "round-001"
    assert [p.name for p in sorted((run.ledger.path / "policies").glob("round-*"))] == [
        "round-001", "round-002",
    ]  # fmt: skip
    assert summary(run, 0, "*-train-sync-2")["staleness"] == 0
    row = round_rows(run.ledger.path)[0]
    assert row["train"]["steps"] == 3 and row["train"]["examples"] == 3
    assert row["samples"] == 1 and row["extra"]["sync-2"]["samples"] == 1
    # What was passed on the way is gone, and a resume asks for nothing of it.
    again = resumed(run, lambda *a: "unasked")
    play_script(again)
    assert again.asked == [] and again.jobs == []


def test_a_resume_goes_on_between_two_syncs(tmp_path, sums) -> None:
    settings = {"loop": "gkd", "rounds": 1, "teacher": "base", "steps_per_sync": 1, "train": BATCH}
    run = scripted_run(tmp_path, sums, lambda policy, *a: str(len(policy)), **settings)
    train = run.train

    def dying(job: Any, follow: Any) -> Any:
        if len(run.jobs) == 2:
            raise KeyboardInterrupt
        return train(job, follow)

    run.train = dying
    with pytest.raises(KeyboardInterrupt):
        play_script(run)
    again = resumed(run, lambda policy, *a: str(len(policy)))
    play_script(again)
    (job,) = again.jobs
    assert job.stretch and (job.stretch.first, job.stretch.total) == (2, 3)
    assert "round-001+2" in str(job.stretch.state_from)
    assert taught(again, 0, "sync-2")[0][1] == str(len("round-1+2"))


def test_a_round_whose_last_segment_learns_nothing_keeps_what_it_reached(tmp_path, sums) -> None:
    def answer(policy: str, text: str, k: int) -> str:
        return ANSWERS[text] if policy == "round-1+2" else "9"

    run = scripted_run(
        tmp_path, sums, answer, loop="opsd", rounds=2, below=1.0, context="[{answer}]",
        steps_per_sync=1, train=BATCH, on_no_signal="continue",
    )  # fmt: skip
    play_script(run)
    assert len(run.jobs) == 2 + 3  # the third segment of round 0 had no failure
    assert summary(run, 0, "*-train-sync-2") == {
        "policy": "round-1", "no_signal": True, "steps": 0, "examples": 0,
    }  # fmt: skip
    assert Path(run.jobs[2].start_path).name == "round-001"
    assert round_rows(run.ledger.path)[0]["train"]["steps"] == 2


def test_stale_samples_are_refused_where_a_bound_is_set(tmp_path, sums) -> None:
    run = scripted_run(
        tmp_path, sums, lambda *a: "7", loop="gkd", rounds=3, teacher="base", off_policy="stored",
        on_policy_fraction=0.0, max_staleness=1, train={"epochs": 1},
    )  # fmt: skip
    with pytest.raises(DataError, match="samples of base would be 2 optimiser steps old"):
        play_script(run)


def test_minillm_gives_a_share_of_the_prompts_to_the_teacher(tmp_path) -> None:
    prompts = write_prompts(tmp_path / "many.jsonl", [(i, j) for i in range(8) for j in range(8)])
    run = scripted_run(
        tmp_path, prompts, lambda policy, *a: "1" if policy == "teacher" else "2",
        loop="minillm", rounds=1, teacher=str(other_model(tmp_path)), teacher_share=0.2,
    )  # fmt: skip
    play_script(run)
    theirs = [c for _, c, _ in taught(run, 0) if c == "1"]
    assert 4 <= len(theirs) <= 24 and len(taught(run, 0)) == 64
    assert run.jobs[0].objective_options["kind"] == "reverse_kl"


def test_minillm_judges_nothing_where_the_teacher_answers_all(tmp_path) -> None:
    """Of the segments, one prompt each, some are the teacher's whole."""
    prompts = write_prompts(tmp_path / "many.jsonl", [(i, i) for i in range(6)])
    run = scripted_run(
        tmp_path, prompts, lambda policy, *a: "1" if policy == "teacher" else "2", rounds=1,
        loop="minillm", teacher=str(other_model(tmp_path)), teacher_share=0.5, steps_per_sync=1,
        train=BATCH,
    )  # fmt: skip
    play_script(run)
    folder = run.ledger.round_dir(0)
    written = [summary(run, 0, f"*-train{end}")["writers"] for end in (
        "", *(f"-sync-{i}" for i in range(1, 6)),
    )]  # fmt: skip
    whole = [i for i, writers in enumerate(written) if writers == {"teacher": 1}]
    assert 0 < len(whole) < 6
    for i in range(6):
        label = f"-sync-{i}" if i else ""
        for verb in ("generate", "judge"):
            assert len(list(folder.glob(f"??-{verb}{label}"))) == (i not in whole)


def test_sdft_shows_the_demonstration_to_the_teacher_alone(tmp_path, sums) -> None:
    run = scripted_run(
        tmp_path, sums, lambda *a: "7;7", loop="sdft", context="[{worked}]", skip_tokens=1,
        steps_per_sync=None,
    )  # fmt: skip
    play_script(run)
    assert taught(run, 0) == [
        ("1+2=", "7;7", "1+2=[1+2=3;3]"),
        ("12+34=", "7;7", "12+34=[2+4=6,1+3=4;46]"),
        ("5+5=", "7;7", "5+5=[5+5=10;10]"),
    ]
    assert {text for _, text in run.asked} == set(ANSWERS)  # nothing was sampled under it
    (job,) = run.jobs
    assert job.objective_options["teacher"] == "ema" and job.ref_path is None
    (row, *_) = pq.read_table(job.example_files[0]).to_pylist()
    assert row["token_weights"] == [0, 1, 1, 1]


def test_opsd_learns_from_failures_under_the_answer(tmp_path, sums) -> None:
    def answer(policy: str, text: str, k: int) -> str:
        return {"1+2=": ["3", "4"], "12+34=": ["46", "46"], "5+5=": ["9", "10"]}.get(text, "0")[
            min(k, 1)
        ]

    def told(policy: str, text: str, k: int) -> str:
        return text[text.index("[") + 1 : -1] if "[" in text else answer(policy, text, k)

    run = scripted_run(
        tmp_path, sums, told, loop="opsd", rounds=1, samples_per_prompt=2, below=1.0,
        context="[{answer}]", teacher_prompts=2,
    )  # fmt: skip
    play_script(run)
    assert taught(run, 0) == [("1+2=", "4", "1+2=[3]"), ("5+5=", "9", "5+5=[10]")]
    row = round_rows(run.ledger.path)[0]
    assert row["reward_mean"] == pytest.approx(4 / 6)
    assert row["extra"]["teacher"] == {
        "samples": 2, "scored": 2, "kept": None, "reward_mean": 1.0,
    }  # fmt: skip
    assert run.jobs[0].ref_path == run.jobs[0].start_path


def test_the_teacher_may_know_what_was_said_of_each_sample(tmp_path, sums) -> None:
    """Feedback on two samples of the same prompt, and weights of one's tokens."""

    def distil(run: Any, options: Any) -> None:
        for round in run.rounds(1):
            own = round.generate(run.prompts, n=2)
            said = {s.id: {"feedback": f"{s.index}{s.index}"} for s in own.rows}
            first = next(s.id for s in own.rows if s.prompt.answer == "3")
            objective = GKD(
                own, teacher="live", teacher_view=context("[{feedback};{answer}]"), columns=said,
                skip_tokens=1, token_weights={first: (9.0, 0.5, 0.0)},
            )  # fmt: skip
            round.train(objective)
        run.final_round().generate(run.prompts, n=2)

    run = scripted_run(tmp_path, sums, lambda policy, text, k: "78"[k] * 2, rounds=1)
    run.loop = SimpleNamespace(fn=distil)  # type: ignore[assignment]
    play_script(run)
    assert taught(run, 0)[:4] == [
        ("1+2=", "77", "1+2=[00;3]"),
        ("1+2=", "88", "1+2=[11;3]"),
        ("12+34=", "77", "12+34=[00;46]"),
        ("12+34=", "88", "12+34=[11;46]"),
    ]
    rows = pq.read_table(run.jobs[0].example_files[0]).to_pylist()
    assert sorted(row["token_weights"] for row in rows) == [[0, 0.5, 0], *[[0, 1, 1]] * 5]
    assert "token_weights" in run.jobs[0].objective_options


def test_the_teacher_may_follow_principles(tmp_path, sums) -> None:
    def distil(run: Any, options: Any) -> None:
        for round in run.rounds(1):
            own = round.generate(run.prompts, n=1)
            round.train(GKD(own, teacher="base", teacher_view=principles("[0]")))
        run.final_round().generate(run.prompts, n=1)

    run = scripted_run(tmp_path, sums, lambda *a: "7", rounds=1)
    run.loop = SimpleNamespace(fn=distil)  # type: ignore[assignment]
    play_script(run)
    assert taught(run, 0) == [
        (question, "7", f"[0]{question}") for question in ("1+2=", "12+34=", "5+5=")
    ]
    assert {text for _, text in run.asked} == set(ANSWERS)  # the student never sees them


def test_the_served_teacher_of_the_distillation_page_works_as_printed(tmp_path, sums) -> None:
    page = (Path(__file__).parents[1] / "docs" / "distillation.md").read_text()
    code = re.search(r"```python\n(# served\.py.*?)```", page, re.DOTALL)
    assert code
    (tmp_path / "served.py").write_text(code[1])

    def as_vllm(asked: Asked) -> Any:
        tokens = asked.body["prompt"]
        places = [None, *({str(t): {"logprob": -0.5}} for t in tokens[1:])]
        return said("", asked.body, choices=[{"index": 0, "prompt_logprobs": places}])

    with hosting() as host:
        server = host.fresh()
        server.behave = as_vllm
        run = scripted_run(
            tmp_path, sums, lambda *a: "7", loop=f"{tmp_path}/served.py:served", rounds=1,
            served_model="big", base_url=server.url,
        )  # fmt: skip
        play_script(run)
        assert {(asked.path, asked.body["model"]) for asked in server.asked} == {
            ("/v1/completions", "big")
        }
    row = pq.read_table(run.jobs[0].example_files[0]).to_pylist()[0]
    told = row["teacher_ids"]
    assert [told[0], told[20]] == row["completion_tokens"] == [*TOKENIZER("7")["input_ids"], 1]
    assert run.jobs[0].objective_options["teacher"] == "served"


@pytest.mark.parametrize("given", [(1.0,), (1.0, -1.0), (1.0, float("nan"))])
def test_token_weights_that_do_not_fit_are_refused(tmp_path, sums, given) -> None:
    def distil(run: Any, options: Any) -> None:
        for round in run.rounds(1):
            own = round.generate(run.prompts, n=1)
            some = {own.rows[0].id: given}
            round.train(GKD(own, teacher="base", token_weights=some))

    run = scripted_run(tmp_path, sums, lambda *a: "7", rounds=1)
    run.loop = SimpleNamespace(fn=distil)  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"token_weights of sample .* are not 2 finite numbers"):
        play_script(run)


def test_several_workers_cannot_share_a_distillation(tmp_path, sums) -> None:
    run = scripted_run(tmp_path, sums, lambda *a: "7", loop="gkd", rounds=1, teacher="base")
    play_script(run)
    nothing: Any = None
    trainers = Trainers(nothing, ANYWHERE, workers=2, check=lambda: None)
    with pytest.raises(UsageError, match="of objective gkd cannot be shared by workers") as told:
        trainers.train(run.jobs[0], lambda row: None)
    assert told.value.where == "cluster.trainer_workers"
    with pytest.raises(UsageError, match="gkd cannot have its weights in parts") as told:
        trainers.train(replace(run.jobs[0], fsdp=True), lambda row: None)
    assert told.value.where == "cluster.trainer_fsdp"


def test_a_sync_that_comes_too_soon_is_refused_before_anything_is_sampled(tmp_path, sums) -> None:
    run = scripted_run(
        tmp_path, sums, lambda *a: "7", loop="sdft", context="[{answer}]", steps_per_sync=1
    )
    with pytest.raises(UsageError, match=r"steps_per_sync is 1, and with train\.epochs 2"):
        play_script(run)
    assert run.asked == []


@pytest.mark.parametrize("n", [1, 3])
def test_staleness_stays_below_steps_per_sync(tmp_path, n) -> None:
    """Where neither samples a prompt nor epochs divide the batches."""
    prompts = write_prompts(tmp_path / "many.jsonl", [(i, i) for i in range(9)])
    run = scripted_run(
        tmp_path, prompts, lambda policy, text, k: str(k), loop="gkd", rounds=1, teacher="base",
        samples_per_prompt=n, steps_per_sync=4, max_staleness=3,
        train={"batch_size": 2, "epochs": 1.5},
    )  # fmt: skip
    play_script(run)
    folder = run.ledger.round_dir(0)
    steps = [json.loads((p / "manifest.json").read_text())["summary"] for p in (
        *folder.glob("??-train"), *folder.glob("??-train-*"),
    )]  # fmt: skip
    assert len(steps) > 1 and all(s["staleness"] < 4 and s["steps"] <= 4 for s in steps)


@pytest.mark.parametrize("name", ["opsd", "reward_weighted"])
def test_the_shipped_context_gives_the_answer_and_asks_for_no_style(name) -> None:
    """Asked for steps, the teacher of docs/distillation.md's runs taught to never answer."""
    shipped = load(Path(__file__).parents[1] / "loops" / f"{name}.yaml").options
    for options in (shipped, type(shipped).model_construct()):
        assert options.model_dump()["context"] == "\n\nThe answer is {answer}."


def weights(run: ScriptedRun) -> dict[tuple[str, str], float]:
    rows = read_rows(pq.read_table(run.jobs[0].example_files[0]), Example)
    return {
        (decode(list(r.prompt_tokens)), decode(list(r.completion_tokens))): r.weight for r in rows
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reward", {("1+2=", "3"): 1, ("12+34=", "46"): 1, ("12+34=", "046"): 1}),
        ("shortfall", {("1+2=", "4"): 1, ("5+5=", "9"): 1, ("5+5=", "8"): 1}),
        (
            "advantage",
            {("1+2=", "3"): 2.718, ("1+2=", "4"): 0.3679, ("12+34=", "46"): 1,
             ("12+34=", "046"): 1, ("5+5=", "9"): 1, ("5+5=", "8"): 1},
        ),
    ],
)  # fmt: skip
def test_verdicts_weigh_the_divergence(tmp_path, sums, kind, expected) -> None:
    script = {"1+2=": "34", "12+34=": ["46", "046"], "5+5=": "98"}
    judge = tmp_path / "my_judge.py"
    judge.write_text(
        "def near(sample):\n    return float(int(sample.completion) == int(sample.answer))\n"
    )
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: script[text][k], loop="reward_weighted", rounds=1,
        samples_per_prompt=2, weights=kind, weight_temperature=0.5, context="[{answer}]",
        judge=f"{judge}:near",
    )  # fmt: skip
    play_script(run)
    assert weights(run) == pytest.approx(expected, rel=1e-3)
    assert {t for q, _, t in taught(run, 0) if q == "1+2="} <= {"1+2=[3]"}


def test_rewards_that_are_no_weights_are_refused(tmp_path, sums) -> None:
    judge = tmp_path / "my_judge.py"
    judge.write_text("def harsh(sample):\n    return -1.0\n")
    run = scripted_run(
        tmp_path, sums, lambda *a: "1", loop="reward_weighted", weights="reward",
        context="[{answer}]", judge=f"{judge}:harsh",
    )  # fmt: skip
    with pytest.raises(DataError, match="has reward -1, which is no weight"):
        play_script(run)


def test_a_teacher_must_have_the_same_tokenizer(tmp_path, sums, tiny_model) -> None:
    run = scripted_run(
        tmp_path, sums, lambda *a: "1", loop="gkd", teacher=str(tiny_model)
    )  # fmt: skip
    with pytest.raises(UsageError, match="the teacher has another tokenizer"):
        play_script(run)
    assert run.asked == []
    run = scripted_run(tmp_path, sums, lambda *a: "1", loop="gkd", teacher=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="there is no model"):
        play_script(run)
    with pytest.raises(UsageError, match="teacher previous cannot sample"):
        scripted_run(
            tmp_path, sums, lambda *a: "1", loop="gkd", teacher="previous", on_policy_fraction=0.5
        )


def test_teacher_of_a_config_file_is_found_beside_it(tmp_path, sums) -> None:
    path = other_model(tmp_path)
    (tmp_path / "base").mkdir()
    text = "loop: gkd\nmodel: SmolLM2-135M-Instruct\nprompts: sums.jsonl\njudge: number\nteacher: "
    for written, meant in (("other", str(path)), ("base", "base")):
        (tmp_path / "gkd.yaml").write_text(text + written + "\n")
        assert load(tmp_path / "gkd.yaml").options.model_dump()["teacher"] == meant
