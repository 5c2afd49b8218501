"""The judges that ship: what they read, and what they say of it."""

from typing import Any

import pytest

from selfkd.errors import UsageError
from selfkd.judges import choice as choices
from selfkd.judges import number as numbers
from selfkd.judges import reasoning_gym as tasks
from selfkd.judging import JudgeSpec
from selfkd.plugins import list_plugins
from selfkd.records import Prompt, Sample, Verdict


def judged(
    judge: str, completion: str, answer: str | None, finish: Any = "stop", **options: Any
) -> Verdict:
    sample = Sample("s", Prompt.of("question", answer), 0, completion, finish=finish)
    return JudgeSpec(judge, options).build()(sample)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("The sum of 12 and 30 is 42.", "42"),
        ("It costs $1,234,567.50 in all", "1234567.50"),
        ("x = -7", "-7"),
        ("12 - 7", "7"),
        ("12-7", "7"),
        ("12-7=5", "5"),
        ("\\boxed{-5}", "-5"),
        ("a loss of -$20.", "-20"),
        ("$-20", "-20"),
        ("+3", "3"),
        ("\u22124", "-4"),
        ("about 99.5%", "99.5"),
        ("0.5kg", "0.5"),
        (".25", ".25"),
        ("1, 2, 3,", "3"),
        ("1,2345", "2345"),
        ("so 3/4.", "3/4"),
        ("\\frac{3}{4}", "3/4"),
        ("1{,}000", "1000"),
        ("2.5e-3", "2.5e-3"),
        ("**Answer: 18**", "18"),
        ("no digits here", None),
        ("", None),
    ],
)
def test_last_number_reads(text: str, read: str | None) -> None:
    assert numbers.last_number(text) == read


@pytest.mark.parametrize(
    ("completion", "answer", "options", "reward"),
    [
        ("The answer is 1,000.", "1000", {}, 1),
        ("42.0", "42", {}, 1),
        ("007", "7", {}, 1),
        ("The answer is 42. Or rather 41", "42", {}, 0),
        ("-3", "3", {}, 0),
        ("1/4", "3/4", {}, 0),
        ("6/8", "3/4", {}, 1),
        ("0.75", "3/4", {}, 1),
        ("1/4", "3/4", {"fractions": False}, 1),
        ("3.14", "3.14159", {}, 0),
        ("3.14", "3.14159", {"tolerance": 0.01}, 1),
        ("3.15", "3.14", {"tolerance": 0.01}, 1),
        ("1/0", "1", {}, 0),
        ("1e999999999999", "1", {"tolerance": 1.0}, 0),
        ("9" * 5000, "9" * 5000, {}, 1),
        ("#### 18", "#### 18", {}, 1),
    ],
)
def test_number_compares(
    completion: str, answer: str, options: dict[str, Any], reward: float
) -> None:
    verdict = judged("number", completion, answer, **options)
    assert (verdict.reward, verdict.status) == (reward, "ok")


@pytest.mark.parametrize(
    ("judge", "answer", "right"),
    [
        ("number", "5", "It is 5"),
        ("exact", "yes", "yes"),
        ("choice", "B", "The answer is B"),
        ("math", "\\frac{1}{2}", "\\boxed{0.5}"),
    ],
)
def test_gold_judges_agree_on_truncation_and_absence(judge: str, answer: str, right: str) -> None:
    assert judged(judge, right, answer).reward == 1
    cut = judged(judge, right, answer, finish="length")
    assert (cut.reward, cut.rationale, cut.answer) == (0, "length", None)
    assert judged(judge, right, answer, finish="length", truncated="read").reward == 1
    nothing = judged(judge, "", answer)
    assert (nothing.reward, nothing.rationale) == (0, "no_answer")
    assert JudgeSpec(judge).gold
    assert JudgeSpec(judge).needs_answer


@pytest.mark.parametrize("judge", ["number", "exact", "choice", "math"])
def test_gold_judges_refuse_a_missing_reference(judge: str) -> None:
    with pytest.raises(ValueError, match="reference answer"):
        judged(judge, "5", None)


@pytest.mark.parametrize(
    ("completion", "answer", "options", "reward"),
    [
        ("  the\n cat ", "the cat", {}, 1),
        ("  the\n cat ", "the cat", {"strip": False}, 0),
        ("The cat", "the cat", {}, 0),
        ("The cat", "the cat", {"ignore_case": True}, 1),
        ("the cat!", "the cat", {}, 0),
        ("the cat!", "the cat", {"ignore_punctuation": True}, 1),
        ("cafe\u0301", "caf\u00e9", {}, 1),
        ("the cat sat", "the cat", {}, 0),
    ],
)
def test_exact_compares(
    completion: str, answer: str, options: dict[str, Any], reward: float
) -> None:
    assert judged("exact", completion, answer, **options).reward == reward


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B.", "B"),
        ("The answer is (b) because", "B"),
        ("**Answer:** C", "C"),
        ("Answer: option D", "D"),
        ('{"answer": "A"}', "A"),
        ("The correct option is D", "D"),
        ("so \\boxed{B}", "B"),
        ("so $\\boxed{\\text{B}}$", "B"),
        ("The answer is A. Wait, the answer is B.", "B"),
        ("Answer: A is what (C) says, but the answer is (D).", "D"),
        ("The answer is B. (A) is wrong.", "B"),
        ("I would take (A), no, (C)", "C"),
        ("Let me think.\nB", "B"),
        ("B. Paris", "B"),
        ("B) Paris", "B"),
        ("A good question.", None),
        ("The answer is a good one", None),
        ("The answer is not B", None),
        ("The answer is Berlin", None),
        ("", None),
    ],
)
def test_choice_reads_the_last_statement(text: str, letter: str | None) -> None:
    assert choices.last_letter(text, "ABCDEFGHIJ") == letter


def test_choice_knows_only_its_letters() -> None:
    assert judged("choice", "Answer: D", "(b)", letters="ABC").rationale == "no_answer"
    with pytest.raises(ValueError, match="'E' is not of ABC"):
        judged("choice", "Answer: B", "E", letters="ABC")


def test_regex_takes_the_last_match() -> None:
    score = {"pattern": r"Score: (\d)"}
    verdict = judged("regex", "Score: 5 they said. Score: 2", "5", **score)
    assert (verdict.reward, verdict.answer) == (0, "2")
    assert judged("regex", "Score: 2. Score: 5", "5", **score).reward == 1
    assert judged("regex", "no score", "5", **score).rationale == "no_answer"
    named = {"pattern": r"(?P<a>\w+) is (?P<b>\w+)", "group": "b", "ignore_case": True}
    assert judged("regex", "sky is BLUE", "blue", **named).reward == 1


def test_regex_for_presence_is_no_gold_judge() -> None:
    presence = {"pattern": "<think>.*</think>", "compare": "presence"}
    assert judged("regex", "<think>hm</think>", None, **presence).reward == 1
    assert judged("regex", "hm", None, **presence).reward == 0
    assert not JudgeSpec("regex", presence).gold
    assert not JudgeSpec("regex", presence).needs_answer
    assert JudgeSpec("regex", {"pattern": "x"}).gold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs its option 'pattern'"),
        ({"pattern": "("}, "option pattern = '('"),
        ({"pattern": "a", "group": 2}, "no group 2"),
        ({"pattern": "a", "compare": "both"}, "'answer' or 'presence'"),
    ],
)
def test_regex_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="judge 'regex'") as caught:
        JudgeSpec("regex", options).validate()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("Thus \\boxed{\\frac{6}{8}}", "3/4", 1),
        ("$(x+1)^2$", "x^2+2x+1", 1),
        ("The answer is 50%", "50\\%", 1),
        ("\\boxed{\\{2, 1\\}}", "\\{1,2\\}", 1),
        ("\\boxed{4} no, \\boxed{5}", "5", 1),
        ("\\boxed{4} no, \\boxed{5}", "4", 0),
        ("\\boxed{4} and then 5", "4", 1),
        ("the answer is 3. No, the answer is 4", "4", 1),
        ("\\boxed{\\frac{1}{0}}", "5", 0),
        ("\\boxed{x_{", "5", 0),
    ],
)
def test_math_compares(completion: str, answer: str, reward: float) -> None:
    assert judged("math", completion, answer).reward == reward


def gym_sample(completion: str) -> Sample:
    import reasoning_gym

    options = {"min_terms": 2, "max_terms": 2}
    entry = reasoning_gym.create_dataset("chain_sum", seed=1, size=1, **options)[0]
    row = {"task": "chain_sum", "options": options, "entry": entry}
    prompt = Prompt.of(entry["question"], entry["answer"], reasoning_gym=row)
    return Sample("s", prompt, 0, completion.replace("ANSWER", entry["answer"]))


def test_reasoning_gym_scores_by_the_task() -> None:
    judge = JudgeSpec("reasoning_gym").build()
    assert judge(gym_sample("I think that 1 and 2 make ANSWER.")).reward == 1
    assert judge(gym_sample("<answer>ANSWER</answer> was 12345")).reward == 1
    assert judge(gym_sample("ANSWER, or 77777")).reward == 0
    assert judge(gym_sample("no idea")).rationale == "no_answer"
    whole = JudgeSpec("reasoning_gym", {"extract": "whole"}).build()
    assert 0 < whole(gym_sample("It is ANSWER")).reward < 1  # the task's own partial credit
    strict = JudgeSpec("reasoning_gym", {"extract": "whole", "partial": False}).build()
    assert strict(gym_sample("It is ANSWER")).reward == 0
    assert strict(gym_sample("ANSWER")).reward == 1
    with pytest.raises(ValueError, match="no column reasoning_gym"):
        judge(Sample("s", Prompt.of("q", "1"), 0, "1"))


@pytest.mark.parametrize(
    ("how", "reference", "read"),
    [
        ("auto", "12", "7"),
        ("auto", "blue", "said 7"),
        ("tag", "12", None),
        ("last_line", "12", "said 7"),
        ("whole", "12", "so\nsaid 7"),
    ],
)
def test_reasoning_gym_extracts(how: tasks.Extract, reference: str, read: str | None) -> None:
    assert tasks.extract(" so\nsaid 7\n", how, reference) == read


def test_random_rewards_a_share_and_repeats_itself() -> None:
    samples = [Sample(f"s{i}", Prompt.of("q"), 0, "") for i in range(2000)]

    def rewards(**options: Any) -> list[float]:
        return [JudgeSpec("random", options).build()(s) for s in samples]

    quarter = rewards(share=0.25)
    assert set(quarter) == {0, 1}
    assert sum(quarter) / len(quarter) == pytest.approx(0.25, abs=0.03)
    assert quarter == rewards(share=0.25) != rewards(share=0.25, seed=1)
    graded = rewards(graded=True)
    assert sum(graded) / len(graded) == pytest.approx(0.5, abs=0.03)
    assert sum(g < 0.1 for g in graded) / len(graded) == pytest.approx(0.1, abs=0.03)
    assert not JudgeSpec("random").gold


def test_every_built_in_judge_is_listed_with_its_purpose() -> None:
    listed = {name: purpose for name, purpose, _ in list_plugins("judge")}
    expected = {"choice", "exact", "math", "number", "random", "reasoning_gym", "regex"}
    assert expected <= listed.keys()
    assert all(listed.values())
