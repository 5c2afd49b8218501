"""Rewards, tasksets and scorers of other packages as judges, with the real packages.

The newest verifiers and inspect_ai want other versions of mcp, openai and fsspec than
constraints.txt pins, so in that environment their tests are skipped; `make adapters` runs them.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import UsageError
from selfkd.judging import JudgeSpec
from selfkd.prompts import PromptOptions, open_prompts
from selfkd.records import Prompt, Sample, Verdict


def judged(judge: str, sample: Sample, **options: Any) -> Verdict:
    return asyncio.run(JudgeSpec(judge, options).build()(sample))


def installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


# -- TRL ------------------------------------------------------------------------------------------


def test_a_reward_function_of_trl_is_a_judge() -> None:
    from selfkd.batches import Copies
    from selfkd.judgerun import JudgeRunner

    spec = JudgeSpec("trl.rewards:think_format_reward")
    texts = ["<think>\nhm\n</think>\n4", "4"]
    samples = [Sample(f"s{i}", Prompt.of("2+2", "4"), i, text) for i, text in enumerate(texts)]
    rows = [row for row in JudgeRunner(spec).rows(Copies.of(samples)) if row]
    assert [(row[0], row[1], row[2]) for row in rows] == [(0, 1.0, "ok"), (1, 0.0, "ok")]


# -- verifiers ------------------------------------------------------------------------------------

needs_verifiers = pytest.mark.skipif(
    not installed("verifiers.v1"), reason="verifiers 0.4 is not installed"
)

TASKSET = """
import verifiers.v1 as vf

__all__ = ["Sums"]

class Data(vf.TaskData):
    answer: str

class Config(vf.TasksetConfig):
    count: int = 30

class Sum(vf.Task[Data]):
    @vf.reward
    async def right(self, trace) -> float:
        return float(trace.last_reply.endswith(self.data.answer))

    @vf.reward(weight=0.25)
    async def polite(self, task, trace) -> float:
        assert "[user]" in trace.transcript and task.answer == self.data.answer
        return float("please" in trace.last_reply)

class Boxed(vf.Task[Data]):
    @vf.reward
    async def ran(self, trace, runtime) -> float:
        return 1.0

class Sums(vf.Taskset[Sum, Config]):
    def load(self):
        for i in range(self.config.count):
            prompt = f"{i} + 1?" if i else [{"role": "user", "content": "0 + 1?"}]
            yield Sum(Data(prompt=prompt, system_prompt="Add.", answer=str(i + 1)))
"""


@pytest.fixture
def taskset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with a taskset, as an installed package would have it."""
    (tmp_path / "sums_for_tests.py").write_text(TASKSET)
    boxed = TASKSET.replace("Taskset[Sum,", "Taskset[Boxed,").replace("yield Sum(", "yield Boxed(")
    (tmp_path / "boxed_for_tests.py").write_text(boxed)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "sums_for_tests"
    for name in ("sums_for_tests", "boxed_for_tests"):
        sys.modules.pop(name, None)


def prompts(taskset: str, **options: Any) -> list[Prompt]:
    given = {"source": f"verifiers:{taskset}", "options": options, "heldout": 0}
    source = open_prompts(PromptOptions.model_validate(given), seed=0, base=Path.cwd())
    return source.train(0)


@needs_verifiers
def test_a_taskset_gives_prompts_and_scores_their_completions(taskset: str) -> None:
    drawn = prompts(taskset, count=3)
    assert [p.messages[-1]["content"] for p in drawn] == ["0 + 1?", "1 + 1?", "2 + 1?"]
    assert [p.messages[0] for p in drawn] == [{"role": "system", "content": "Add."}] * 3
    assert [p.answer for p in drawn] == ["1", "2", "3"]
    texts = {"please take 2": (1.25, "polite 0.25, right 1"), "it is 3": (0.0, "right 0")}
    for text, (reward, said) in texts.items():
        verdict = judged("verifiers", Sample("s", drawn[1], 0, text))
        assert verdict.reward == reward
        assert set(verdict.rationale.split(", ")) >= set(said.split(", "))
    cut = judged("verifiers", Sample("s", drawn[1], 0, "please take 2", finish="length"))
    assert (cut.reward, cut.rationale) == (0, "length")
    assert JudgeSpec("verifiers").gold and not JudgeSpec("verifiers", {"gold": False}).gold


@needs_verifiers
def test_a_taskset_that_cannot_be_used_says_why(taskset: str) -> None:
    with pytest.raises(UsageError, match="there is no taskset 'nowhere_to_be_found'"):
        prompts("nowhere_to_be_found")
    with pytest.raises(UsageError, match="there is no taskset 'sums_for_tests' to use"):
        prompts(taskset, cuont=3)
    (boxed,) = prompts("boxed_for_tests", count=1)
    with pytest.raises(ValueError, match="no reward without the runtime"):
        judged("verifiers", Sample("s", boxed, 0, "1"))


def test_prompts_of_another_source_are_refused() -> None:
    with pytest.raises(ValueError, match="use prompts: verifiers:TASKSET"):
        judged("verifiers", Sample("s", Prompt.of("q", "1"), 0, "1"))


@pytest.mark.skipif(installed("verifiers"), reason="verifiers is installed")
def test_without_verifiers_it_says_what_to_install() -> None:
    with pytest.raises(UsageError, match=r"install the package that has it, and verifiers 0\.4"):
        prompts("any")


# -- inspect_ai -----------------------------------------------------------------------------------

needs_inspect = pytest.mark.skipif(
    not installed("inspect_ai"), reason="inspect_ai is not installed"
)


@needs_inspect
@pytest.mark.parametrize(
    ("scorer", "arguments", "completion", "reward"),
    [
        ("includes", {}, "It is FORTY-two.", 1),
        ("includes", {"ignore_case": False}, "It is FORTY-two.", 0),
        ("match", {}, "The answer: forty-two", 1),
        ("match", {"location": "begin"}, "The answer: forty-two", 0),
        ("f1", {}, "forty-two or so", 0.67),
        ("inspect_ai.scorer:exact", {}, "forty-two", 1),
    ],
)
def test_scorers_of_inspect_ai(
    scorer: str, arguments: dict[str, Any], completion: str, reward: float
) -> None:
    sample = Sample("s", Prompt.of("6 x 7?", "forty-two", topic="sums"), 0, completion)
    verdict = judged("inspect_ai", sample, scorer=scorer, arguments=arguments)
    assert verdict.reward == pytest.approx(reward)
    spec = JudgeSpec("inspect_ai", {"scorer": scorer, "arguments": arguments})
    spec.check_ready()
    assert spec.gold and spec.needs_answer


@needs_inspect
def test_what_a_scorer_may_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scorers_for_tests.py").write_text(
        "from inspect_ai.scorer import Score, scorer, accuracy\n"
        "@scorer(metrics=[accuracy()])\n"
        "def odd(value=None):\n"
        "    async def score(state, target):\n"
        "        assert state.metadata == {'topic': 'sums'} and state.completed\n"
        "        text = state.output.completion\n"
        "        if text == 'none':\n"
        "            return None\n"
        "        return Score(value=text if value is None else value, explanation='because')\n"
        "    return score\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def said(text: str, **arguments: Any) -> Verdict:
        sample = Sample("s", Prompt.of("q", topic="sums"), 0, text)
        options = {"scorer": "scorers_for_tests:odd", "arguments": arguments, "gold": False}
        return judged("inspect_ai", sample, **options)

    assert (said("P").reward, said("P").rationale) == (0.5, "because")
    assert (said("N").reward, said("N").rationale) == (0, "no_answer")
    assert said("none").reward is None
    assert said("x", value=0.25).reward == 0.25
    with pytest.raises(ValueError, match="several values"):
        said("x", value={"a": 1, "b": 0})
    assert not JudgeSpec("inspect_ai", {"scorer": "includes", "gold": False}).needs_answer
    with pytest.raises(UsageError, match="there is no scorer 'inclodes'"):
        JudgeSpec("inspect_ai", {"scorer": "inclodes"}).check_ready()


@pytest.mark.skipif(installed("inspect_ai"), reason="inspect_ai is installed")
def test_without_inspect_ai_it_says_what_to_install() -> None:
    with pytest.raises(UsageError, match="pip install inspect-ai"):
        JudgeSpec("inspect_ai", {"scorer": "includes"}).check_ready()
