"""Judges made of judges, and the vote: by config, nested, with every failure kept apart."""

from pathlib import Path
from typing import Any

import pytest

from selfkd.config import load
from selfkd.errors import UsageError
from selfkd.judgecalls import StopJudging
from selfkd.judging import JudgeSpec
from tests.callers import ScriptedCaller, answer, judged

OWN = '''
def length(sample):
    """Reward by length; cannot do everything."""
    if sample.completion == "raise":
        raise ValueError("not this one")
    if sample.completion == "none":
        return None
    return float(len(sample.completion))

async def slow(sample):
    return sample.verdict(2.0, answer="read", cost_usd=0.5)

def reward(completions, **columns):
    return [4.0] * len(completions)
'''


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_an_ensemble_takes_any_kind_of_judge(own):
    judges = [f"{own}:length", f"{own}:slow", f"{own}:reward"]
    samples = [answer(text) for text in ("abc", "raise", "none")]

    def rewards(**options: Any) -> list[float | None]:
        return [v.reward for v in judged("ensemble", samples, judges=judges, **options)]

    assert rewards() == [3.0, None, None]
    assert rewards(weights=[2, 1, 1], scales=[3, 1, 4]) == [(2 + 2 + 1) / 4, None, None]
    assert rewards(combine="min") == [2.0, None, None]
    assert rewards(unscored="skip") == [3.0, 3.0, 3.0]
    assert rewards(unscored="skip", combine="min", scales=[1, 2, 1]) == [1.0, 1.0, 1.0]
    first, failed, none = judged("ensemble", samples, judges=judges)
    assert (first.answer, first.cost_usd) == ("read", 0.5)
    assert (failed.status, none.status) == ("error", "abstained")
    assert "not this one" in failed.rationale and failed.cost_usd == 0.5


def test_most_of_the_judges_decide(own):
    judges = [f"{own}:length", f"{own}:slow", f"{own}:reward"]
    options: dict[str, Any] = {"judges": judges, "combine": "majority", "yes_from": 3}
    yes, no = judged("ensemble", [answer("abcd"), answer("ab")], **options)
    assert (yes.reward, no.reward) == (1.0, 0.0)
    fewer: dict[str, Any] = options | {"judges": judges[:2]}
    (torn,) = judged("ensemble", [answer("abcd")], **fewer)
    assert (torn.reward, torn.status) == (None, "abstained")


def test_a_cascade_asks_the_model_only_about_what_the_rule_lets_through():
    caller = ScriptedCaller(lambda text, k: "Score: 4", cost=0.25)
    judges = [{"use": "regex", "pattern": "It is", "compare": "presence"}, "self_reward"]
    samples = [answer("It is 4."), answer(":"), answer("Let's think step by step."), answer("")]
    verdicts = judged("cascade", samples, caller, judges=judges)
    assert [v.reward for v in verdicts] == [
        4.0,
        0.0,
        0.0,
        0.0,
    ]  # D2: what says nothing earns nothing
    assert [c.about for c in caller.calls] == [samples[0].id]
    assert [v.cost_usd for v in verdicts] == [0.25, 0, 0, 0]
    assert verdicts[1].rationale.startswith("stopped by regex")


def test_what_a_cascade_stops_may_keep_its_reward_and_its_reason(own):
    judges = [f"{own}:length", "random"]
    options: dict[str, Any] = {"judges": judges, "pass_from": 3.0, "stopped": "own"}
    verdicts = judged("cascade", [answer(t) for t in ("ab", "raise", "abcd")], **options)
    assert verdicts[0].reward == 2.0
    assert (verdicts[1].reward, verdicts[1].status) == (None, "error")
    assert verdicts[2].reward in (0.0, 1.0)
    lower = judged("cascade", [answer("ab")], judges=judges, pass_from=3.0, stopped=-1)
    assert lower[0].reward == -1


def test_length_costs(own):
    options: dict[str, Any] = {"judge": f"{own}:length", "free": 3, "per_100": 10, "most": 0.5}
    samples = [answer("four words in it"), answer("short"), answer("raise"),
               answer("abc", tokens=tuple(range(90)))]  # fmt: skip
    four, short, failed, long = judged("length_penalised", samples, **options)
    assert four.reward == pytest.approx(16 - 0.1)
    assert (short.reward, failed.status) == (5.0, "error")
    assert long.reward == pytest.approx(3 - 0.5)
    assert long.rationale.startswith("3 less 0.5 for 90 tokens")


def test_what_a_composition_says_of_itself_follows_from_its_parts():
    def spec(use: str, **options: Any) -> JudgeSpec:
        return JudgeSpec(use, options)

    rules = spec("ensemble", judges=["number", "exact"])
    assert rules.gold and rules.needs_answer and not rules.calls and rules.engine is None
    mixed = spec("cascade", judges=["number", {"use": "self_reward", "frozen": "base"}])
    assert not mixed.gold and mixed.needs_answer and mixed.calls
    assert (mixed.engine, mixed.writes, mixed.compares) == ("base", True, False)
    deep = spec("length_penalised", judge={"use": "ensemble", "judges": ["pairwise"]})
    assert (deep.engine, deep.writes, deep.compares) == ("own", True, True)
    quiet = spec("length_penalised", judge="expected_score")
    assert quiet.calls and not quiet.writes
    torn = spec("ensemble", judges=["self_reward", {"use": "expected_score", "frozen": "base"}])
    with pytest.raises(UsageError, match="ask different policies"):
        assert torn.engine


def test_the_inner_judges_are_part_of_the_identity(own):
    def identity(inner: Any) -> str:
        return JudgeSpec("length_penalised", {"judge": inner}).identity()

    first = identity(f"{own}:length")
    assert identity(f"{own}:slow") != first
    assert identity({"use": "random", "seed": 1}) != identity({"use": "random", "seed": 2})
    Path(own).write_text(OWN.replace("not this one", "nor this one"))
    assert identity(f"{own}:length") != first


PAID = '''
from pathlib import Path

from selfkd.errors import Stopped
from selfkd.judgecalls import StopJudging
import selfkd

@selfkd.judge("paid", cacheable=True)
def paid(sample):
    """Has money for texts without a "!"."""
    if "!" in sample.completion:
        raise StopJudging(Stopped("no money left"))
    with (Path(__file__).parent / "paid.txt").open("a") as file:
        file.write(sample.completion + "\\n")
    return sample.verdict(2.0, cost_usd=0.5)

def free(sample):
    return float(len(sample.tokens))
'''


def test_what_is_paid_for_inside_a_composition_is_kept_by_itself(tmp_path):
    (tmp_path / "mine.py").write_text(PAID)
    paid, free = (f"{tmp_path / 'mine.py'}:{name}" for name in ("paid", "free"))

    def asked(use: str, *texts: str, tokens: int = 1, **options: Any) -> tuple[list[str], Any]:
        (tmp_path / "paid.txt").write_text("")
        caller = ScriptedCaller()
        caller.kept = tmp_path / "verdicts"  # as the process of a run's judge has it
        samples = [answer(text, k=k, tokens=(0,) * tokens) for k, text in enumerate(texts)]
        verdicts = judged(use, samples, caller, **options)
        return (tmp_path / "paid.txt").read_text().split(), verdicts

    judges = [paid, free]
    first, verdicts = asked("ensemble", "a", "b", judges=judges)
    assert first == ["a", "b"] and [v.cost_usd for v in verdicts] == [0.5, 0.5]
    # Other weights, another judge beside it, other tokens: none of these is what was paid for.
    again, verdicts = asked("ensemble", "b", "a", "c", judges=judges, weights=[3, 1], tokens=9)
    assert again == ["c"] and [v.cost_usd for v in verdicts] == [0, 0, 0.5]
    assert [v.reward for v in verdicts] == [(2 * 3 + 9) / 4] * 3
    assert asked("cascade", "a", judges=[free, paid])[0] == []
    deep = {"use": "ensemble", "judges": [paid]}
    assert asked("length_penalised", "a", judge=deep)[0] == []
    with pytest.raises(StopJudging):
        asked("ensemble", "d", "!", "e", judges=judges)
    assert asked("ensemble", "d", "e", judges=judges)[0] == ["e"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"judges": []}, "judges"),
        ({"judges": ["nmber"]}, "did you mean 'number'"),
        ({"judges": [{"use": "number", "tolerence": 1}]}, "did you mean tolerance"),
        ({"judges": ["number"], "weights": [1, 2]}, "weights has 2 values for 1 judges"),
        ({"judges": ["number"], "scales": [0]}, "scales must be greater than 0"),
        ({"judges": [{"tolerance": 1}]}, "names no judge"),
    ],
)
def test_mistakes_inside_a_composition_name_what_is_wrong(options, said):
    with pytest.raises(UsageError) as caught:
        JudgeSpec("ensemble", options).validate()
    assert said in str(caught.value)


def test_files_of_inner_judges_are_relative_to_the_config(tmp_path, own):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    text = """
loop: rest_em
model: m
prompts: prompts.jsonl
gold_judge: number
judge:
  use: cascade
  judges:
    - own.py:length
    - use: length_penalised
      judge: {use: "own.py:slow"}
"""
    (tmp_path / "run.yaml").write_text(text)
    resolved = load(tmp_path / "run.yaml")
    assert resolved.judge.options["judges"][0] == f"{own}:length"
    assert resolved.judge.options["judges"][1]["judge"]["use"] == f"{own}:slow"
    changed = load(tmp_path / "run.yaml", ["judge.judges=[random, number]"])
    assert changed.judge.options["judges"] == ["random", "number"]


# -- majority -------------------------------------------------------------------------------------


def votes(texts: list[str], question: str = "?", **fields: Any) -> list[Any]:
    return [answer(text, question, k, **fields) for k, text in enumerate(texts)]


def test_the_most_frequent_answer_is_the_label():
    samples = votes(["so 4", "4.0", "I say 5", "none", "8/2"]) + votes(["7"], "another?")
    verdicts = judged("majority", samples)
    assert [v.reward for v in verdicts] == [1, 1, 0, 0, 1, 1]
    assert [v.answer for v in verdicts] == ["4", "4.0", "5", None, "8/2", "7"]
    assert verdicts[0].rationale == "label 4 with 3 of 4 votes"
    assert verdicts[3].rationale == "no_answer"
    shares = [v.reward for v in judged("majority", samples, reward="share")]
    assert shares == [0.75, 0.75, 0.25, 0, 0.75, 1]


def test_ties_and_small_majorities():
    tied = judged("majority", votes(["3", "9", "9", "3"]))
    assert [v.reward for v in tied] == [1, 0, 0, 1] and "a tie" in tied[0].rationale
    unsure = judged("majority", votes(["3", "9", "8", "3"]), least_share=0.6)
    assert [(v.reward, v.status) for v in unsure] == [(None, "abstained")] * 4


def test_what_was_cut_off_has_no_vote_unless_it_is_asked_for():
    cut = votes(["9", "9"], finish="length")
    samples = [answer("3", "?", 7), *cut]
    assert [v.reward for v in judged("majority", samples)] == [1, 0, 0]
    assert [v.rationale for v in judged("majority", samples)][1] == "length"
    assert [v.reward for v in judged("majority", samples, truncated="read")] == [0, 1, 1]


def test_answers_of_other_kinds_are_voted_on():
    letters = votes(["The answer is B", "(b)", "The answer is A"])
    assert [v.reward for v in judged("majority", letters, answer="letter")] == [1, 1, 0]
    texts = votes([" yes", "yes ", "Yes"])
    assert [v.reward for v in judged("majority", texts, answer="text")] == [1, 1, 0]
    own = votes(["x=1 y=2", "x=3 y=2", "x=1"])
    assert [v.reward for v in judged("majority", own, pattern=r"x=(\d)")] == [1, 0, 1]
    huge = votes(["1e999999999", "2"])
    assert [v.reward for v in judged("majority", huge)] == [1, 0]
