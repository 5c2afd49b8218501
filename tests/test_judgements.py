"""Judgements as samples: how they are asked for, read, and rated by their wins."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from selfkd.errors import UsageError
from selfkd.instructions import creation_prompts, instruction, novel, rouge_l
from selfkd.judgements import agreement, ask_which, contested, reader, strengths, winners_of
from selfkd.judging import JudgeSpec, resolve_judge
from selfkd.loops.meta_rewarding import MetaRewardingOptions
from selfkd.records import Finish, Prompt, Sample
from tests.test_rules import candidates

LOOPS = Path(__file__).parents[1] / "loops"
VERSUS = (LOOPS / "meta_rewarding.txt").read_text()
WINNER = MetaRewardingOptions.model_fields["winner_pattern"].default
READ = reader(JudgeSpec("self_reward"))


def sample(id: str, text: str, prompt: str = "p", finish: Finish = "stop") -> Sample:
    asked = Prompt(prompt, ({"role": "user", "content": "2 + 2?"},))
    return Sample(id, asked, 0, text, finish=finish)


def test_a_judgement_is_read_as_its_judge_reads_it():
    assert READ(sample("j", "Fine.\nScore: 4")) == 4
    own = JudgeSpec("self_reward", {"score_pattern": r"Note (\d)", "highest": 6})
    assert reader(own)(sample("j", "Note 6")) == 6
    assert reader(own)(sample("j", "Score: 4")) is None
    with pytest.raises(UsageError, match="'majority' writes no judgements"):
        reader(JudgeSpec("majority"))


def test_a_judgement_that_was_cut_off_is_not_read_nor_learnt_from():
    cut = sample("j", "It asks for this:\nScore: 5", "right", "length")
    assert READ(cut) is None
    assert reader(JudgeSpec("self_reward", {"truncated": "read"}))(cut) == 5
    truth = {"right": sample("right", "4").verdict(1.0)}
    assert agreement([cut], READ, truth, 3) == ({}, {})
    assert contested([sample("right", "4")], [cut], READ, 2) == []
    assert winners_of([sample("m", "Winner: A", "a|b", "length")], WINNER) == {"a|b": None}


@pytest.mark.parametrize("loop", ["self_rewarding", "meta_rewarding"])
@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("4", 4),
        (" 3. The answer is right.", 3),
        ("5\n\nQuestion: State the final answer to 3 + 4 =\nAnswer: 7\nPoints from 0 to 5: 1", 5),
        ("20 + 3 = 23", None),
        ("3 + 4 = 7", None),
        ("It is right, so 5", None),
    ],
)
def test_the_judgements_of_the_small_models_in_loops_are_read_whole_or_not(loop, said, score):
    config = yaml.safe_load((LOOPS / f"{loop}.yaml").read_text())
    read = reader(resolve_judge(config["judge"], LOOPS))
    assert read(sample("j", said)) == read(sample("j", said, finish="length")) == score


def test_agreement_with_the_truth():
    drawn = [sample("a", "Score: 4", "right"), sample("b", "Score: 4", "wrong"),
             sample("c", "Score: 1", "wrong"), sample("d", "?", "wrong"),
             sample("e", "Score: 1", "wrong#2")]  # fmt: skip
    truth = {"right": sample("right", "4").verdict(1.0), "wrong": sample("wrong", "5").verdict(0.0)}
    agrees, found = agreement(drawn, READ, truth, 3)
    assert agrees == {"a": 1, "b": 0, "c": 1}
    assert found == {"a": "4", "b": "4", "c": "1", "e": "1"}


def test_the_contested_answer_is_the_one_whose_scores_vary_most():
    answers = [sample("s1", "4"), sample("s2", "5"), sample("s3", "22", "q")]
    drawn = [sample(f"{s}{i}", f"Score: {v}", s)
             for s, values in (("s1", "334"), ("s2", "150"), ("s3", "222"))
             for i, v in enumerate(values)]  # fmt: skip
    ((answer, judged),) = contested(answers, drawn, READ, 2)
    assert answer.id == "s2" and [j.id for j in judged] == ["s20", "s21"]
    (one, _) = ask_which([(answer, judged[0], judged[1]), (answer, judged[1], judged[0])], VERSUS)
    assert one.id == "s20|s21" and one.text.index("Score: 1") < one.text.index("Score: 5")
    with pytest.raises(UsageError, match="shows nothing of first, second"):
        ask_which([], "{question}: {response}?")


def test_who_wins_is_strong_and_a_preference_for_a_place_is_not_a_win():
    answer, judged = sample("s", "4"), [sample(j, "") for j in "abc"]
    beats = {"a": 0, "b": 1, "c": 2}
    honest = {f"{i}|{j}": "A" if beats[i] < beats[j] else "B"
              for i in "abc" for j in "abc" if i != j}  # fmt: skip
    found = strengths([(answer, judged)], honest)
    assert found["a"] > found["b"] > found["c"]  # type: ignore[operator]
    biased = dict.fromkeys(honest, "A")
    assert strengths([(answer, judged)], biased) == {}  # such wins weigh nothing
    assert strengths([(answer, judged)], dict.fromkeys(honest)) == {}


@pytest.mark.parametrize(
    ("said", "winner"),
    [
        ("A is vague.\nWinner: B", "B"),
        ("**Winner: A.**", "A"),
        ("Winner: C", None),
        ("Judgement A says Winner: A", None),
        ("Winner: A\nWinner: A or Winner: B", None),
    ],
)
def test_who_is_named_in_the_last_line_of_the_right_form_has_won(said, winner):
    assert winners_of([sample("m", said, "a|b")], WINNER) == {"a|b": winner}
    assert winners_of([sample("m", "the first", "a|b")], r"^the (\w+)") == {"a|b": None}


def test_rouge_l_is_the_longest_common_subsequence():
    assert rouge_l("the cat sat on the mat", "the cat on the mat") == pytest.approx(10 / 11)
    assert rouge_l("Add 2 + 3!", "add 2 + 3") == 1
    assert rouge_l("a b c", "c b a") == pytest.approx(1 / 3)
    assert rouge_l("", "a") == 0


def test_only_new_instructions_are_kept_and_the_pool_grows_at_once():
    texts = ["1. Name three large rivers", "Name three large rivers of Asia", "Draw a cat for me",
             "No", "Say hello in French", "Add seven and nine"]  # fmt: skip
    c = candidates([None] * 6, texts=texts)
    rule = novel(["Say hello in French please"])
    assert rule.apply(c, np.random.default_rng(0)) == [
        None, "like one before", "not a task for text", "too short or too long",
        "like one before", None,
    ]  # fmt: skip
    assert instruction("\nTask 9: Add two numbers\nmore") == "Add two numbers"
    assert instruction("  ") == ""


def test_creation_shows_six_seeds_and_two_made():
    seeds, made = [f"seed {i}" for i in range(10)], [f"made {i}" for i in range(5)]
    prompts = creation_prompts(seeds, made, 3, np.random.default_rng(0))
    assert [(p.text.count("seed"), p.text.count("made")) for p in prompts] == [(6, 2)] * 3
    assert len({p.text for p in prompts}) == 3
    (first,) = creation_prompts(seeds, [], 1, np.random.default_rng(0))
    assert first.text.count("seed") == 8 and "Write task 9" in first.text
