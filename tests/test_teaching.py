"""A served teacher's likeliest tokens are recorded once, and only where they fit the samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from selfkd.distillation import GKD
from selfkd.errors import DataError, UsageError
from selfkd.run import Run
from selfkd.teaching import Lesson
from selfkd.views import context
from tests.fakes import TOKENIZER, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts


class Counting:
    """Finds every token of the completion most likely, and the end second."""

    name = "counting"
    top_k = 3

    def __init__(self) -> None:
        self.asked: list[str] = []

    def likeliest(self, lessons: Sequence[Lesson]) -> list[list[Mapping[int, float]]]:
        self.asked += [
            str(TOKENIZER.decode(list(x.prompt_tokens))).replace(" ", "") for x in lessons
        ]
        return [
            [{1: -2.0, t: -0.5} if t != 1 else {1: 0.0} for t in x.completion_tokens]
            for x in lessons
        ]


def distil(run: Run, teacher: Counting) -> None:
    for round in run.rounds(2):
        samples = round.generate(run.prompts, n=1)
        taught = round.teach(samples, teacher, view=context("[{answer}]"))
        round.train(GKD(samples, teacher=taught, kind="forward_kl"))
    run.final_round().generate(run.prompts, n=1)


def play(run, teacher: Counting) -> None:
    run.loop = SimpleNamespace(fn=lambda run, options: distil(run, teacher))
    play_script(run)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34)])


def test_what_it_said_is_recorded_and_never_asked_again(tmp_path, sums) -> None:
    teacher = Counting()
    run = scripted_run(tmp_path, sums, lambda *a: "7")
    play(run, teacher)
    assert teacher.asked == ["1+2=[3]", "12+34=[46]"] * 2
    (step,) = run.ledger.round_dir(0).glob("*-train")
    row = pq.read_table(step / "00000.parquet").to_pylist()[0]
    seven = TOKENIZER("7")["input_ids"][0]
    assert row["completion_tokens"] == [seven, 1]
    assert row["teacher_ids"] == [seven, 1, -1, 1, -1, -1]
    assert row["teacher_logprobs"] == [-0.5, -2.0, 0, 0, 0, 0]
    assert run.jobs[0].objective_options["teacher"] == "served" and run.jobs[0].ref_path is None
    again = Counting()
    play(resumed(run, lambda *a: "7"), again)
    assert again.asked == []


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([{5: -1.0}], "it told 1 places of 2"),
        ([{5: -1.0}, {}], "a place has no token, or"),
        ([{5: 0.5}, {5: -1.0}], "a place has no token, or a log-probability above 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, sums, places, words) -> None:
    teacher = Counting()
    teacher.likeliest = lambda lessons: [places for _ in lessons]  # type: ignore[method-assign]
    with pytest.raises(DataError, match=f"teacher counting on sample .*: {words}"):
        play(scripted_run(tmp_path, sums, lambda *a: "7"), teacher)


def test_it_was_asked_at_temperature_one_about_these_samples(tmp_path, sums) -> None:
    def other(run: Run, options: object) -> None:
        for round in run.rounds(1):
            mine, more = (round.generate(run.prompts, n=1, label=name) for name in ("a", "b"))
            taught = round.teach(mine, Counting())
            with pytest.raises(UsageError, match="asked at temperature 1"):
                GKD(mine, teacher=taught, temperature=2.0)
            round.train(GKD(more, teacher=taught))

    run = scripted_run(tmp_path, sums, lambda *a: "7")
    run.loop = SimpleNamespace(fn=other)  # type: ignore[assignment]
    with pytest.raises(DataError, match="the teacher was not asked about sample"):
        play_script(run)
