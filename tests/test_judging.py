"""The judge contract: every kind of judge, and whatever one may do, under a real Ray cluster."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfkd.batches import Batch
from selfkd.cardtext import render_card
from selfkd.cluster import Cluster
from selfkd.controls import ControlOptions
from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.judgepool import JudgePool
from selfkd.judgetest import spec_of, try_judge
from selfkd.judging import JudgeSpec, options_doc, resolve_judge
from selfkd.plugins import find_judge
from selfkd.processes import JudgingConfig
from selfkd.records import VERDICTS, Prompt, Sample, Verdict, rows_table
from selfkd.reportcard import report_card
from selfkd.samplefile import Labelled, read_samples_file
from selfkd.verbs.judge import Tally
from selfkd.verdictcache import VerdictCache
from tests.callers import by_pool

JUDGES = '''
import asyncio, ctypes, os, re, sys, time
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

import selfkd
import siblings_of_judges  # a file beside this one

def length(sample):
    return siblings_of_judges.count(sample.completion)

Word = Annotated[str, Field(min_length=2, description="What to say.")]

def polite(sample, *, word: Word = "please", bonus: float = 0.0):
    return (word in sample.completion) + bonus

async def patient(sample):
    await asyncio.sleep(0.2)
    if sample.completion == "hang":
        while True:
            try:
                await asyncio.sleep(60)
            except BaseException:
                pass
    if sample.completion == "block":
        time.sleep(60)
    return len(sample.completion)

class Options(BaseModel):
    factor: float = Field(2.0, gt=0)
    """What lengths are multiplied with."""

@selfkd.judge("scaled", gold=True)
class Scaled:
    def __init__(self, options: Options) -> None:
        self.factor = options.factor
        self.calls = 0

    def judge(self, samples):
        self.calls += 1
        return [len(s.completion) * self.factor for s in samples]

class Sized:
    """Rewards with the size of the call."""

    def judge(self, samples):
        if any(s.completion == "raise" for s in samples):
            raise RuntimeError("cannot do this one")
        if any(s.completion == "short" for s in samples):
            return [1.0] * (len(samples) - 1)
        if any(s.completion == "hang" for s in samples):
            time.sleep(60)
        if any(s.completion == "swap" for s in samples):
            return [s.verdict(1.0) for s in reversed(samples)]
        return [float(len(samples))] * len(samples)

class Broken:
    def __init__(self, path: str) -> None:
        open(path)

    def judge(self, samples):
        return []

def trl_reward(prompts, completions, answer, topic, *, weight: float = 1.0, **columns):
    assert sorted(columns) == ["completion_ids", "level", "solution"], sorted(columns)
    return [
        None if t is None else weight * (c[0]["content"] == a) + len(p) / 100
        for p, c, a, t in zip(prompts, completions, answer, topic)
    ]

def trl_needs(completions, difficulty):
    return [1.0] * len(completions)

def wild(sample):
    what = sample.completion
    if what == "raise":
        raise ValueError("first line\\nsecond line")
    if what == "nan":
        return float("nan")
    if what == "text":
        return "0.7"
    if what == "array":
        return np.array([1.0, 2.0])
    if what == "none":
        return None
    if what == "unparsed":
        return sample.verdict(None, status="unparsed", rationale="no score in it", cost_usd=0.25)
    if what == "both":
        return sample.verdict(1.0, status="unparsed")
    if what == "numpy":
        return np.float32(0.5)
    if what == "true":
        return True
    if what == "print":
        print("x" * 100_000)
        sys.stdout.flush()
        return 1
    if what == "exit":
        sys.exit(0)
    if what == "die":
        os._exit(0)
    if what == "crash":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(60)
    if what == "backtrack":
        re.match(r"(a+)+$", "a" * 40 + "b")
    if what == "mutate":
        sample.columns["topic"] = "changed"
        sample.prompt.messages[0]["content"] = "changed"
        sample.completion = "changed"
    if what == "columns":
        return len(sample.columns["topic"])
    return sample.verdict(0.5, answer=7, rationale="fine")

class First:
    """Prefers what it is shown first, but never c."""

    def judge(self, samples):
        return [-float(i) - 10 * (s.completion == "c") for i, s in enumerate(samples)]

@selfkd.judge("paid", cacheable=True)
def paid(sample, *, log: str):
    time.sleep(0.1)
    with open(log, "a") as file:
        file.write(sample.id + "\\n")
    return len(sample.completion)

def fatal(sample):
    os._exit(1)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with judges and a file that they import."""
    path = tmp_path_factory.mktemp("user")
    (path / "my_judges.py").write_text(JUDGES)
    (path / "siblings_of_judges.py").write_text("def count(text):\n    return len(text)\n")
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests here, started from a directory that has nothing to do with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setattr("selfkd.judgepool.GRACE", 0.5)
        with Cluster("local", timeout=60) as running:
            yield running


Judge = Callable[..., list[Verdict]]


@pytest.fixture(scope="module")
def judge(cluster: Cluster, folder: Path) -> Iterator[Judge]:
    """Judge samples with one of the user's judges; its process serves the tests after, too."""
    pools: dict[str, JudgePool] = {}

    def run(
        use: str, samples: list[Sample], timeout: float = 30.0, **options: Any
    ) -> list[Verdict]:
        spec = resolve_judge({"use": f"./my_judges.py:{use}", **options}, folder)
        key = f"{use} {timeout} {options}"
        if key not in pools:
            pools[key] = pool_of(spec, cluster, timeout=timeout)
        return by_pool(pools[key], samples)

    yield run
    for pool in pools.values():
        pool.close()


def pool_of(spec: JudgeSpec, cluster: Cluster, timeout: float = 30.0, **settings: Any) -> JudgePool:
    settings = {"workers": 1, "check": lambda: None} | settings
    return JudgePool(spec, cluster, timeout=timeout, **settings)


def sample(completion: str, number: int = 0, answer: str | None = None, **columns: Any) -> Sample:
    prompt = Prompt.of(f"question {number}", answer, **columns)
    return Sample(f"sample-{number}-{completion}", prompt, 0, completion, tokens=(1, 2))


def batch(*completions: str) -> list[Sample]:
    return [sample(c, i) for i, c in enumerate(completions)]


def test_a_function_of_a_sample_in_a_file_that_imports_another(judge: Judge) -> None:
    verdicts = judge("length", batch("a", "bbb"))
    assert [v.reward for v in verdicts] == [1.0, 3.0]
    assert {v.judge for v in verdicts} == {"my_judges.py:length"}
    assert verdicts[1].sample_id == "sample-1-bbb"
    assert verdicts[1].prompt_id == Prompt.of("question 1").id


def test_keyword_options_of_a_function_reach_it(judge: Judge) -> None:
    verdicts = judge("polite", batch("please", "merci"), word="merci", bonus=0.5)
    assert [v.reward for v in verdicts] == [0.5, 1.5]


def test_async_judges_work_on_many_samples_at_once(judge: Judge) -> None:
    judge("patient", batch("warm"))
    before = time.monotonic()
    verdicts = judge("patient", [sample("x" * i, i) for i in range(1, 21)])
    assert [v.reward for v in verdicts] == list(range(1, 21))
    assert time.monotonic() - before < 20 * 0.2


def test_an_async_judge_that_hangs_or_blocks_costs_one_sample(judge: Judge) -> None:
    verdicts = judge("patient", batch("a", "hang", "b", "block", "c"), timeout=1.0)
    assert [v.status for v in verdicts] == ["ok", "timeout", "ok", "timeout", "ok"]
    assert verdicts[1].rationale == (
        "judge my_judges.py:patient, sample sample-1-hang: no verdict within 1 s"
    )


def test_a_class_with_a_model_of_options(judge: Judge, folder: Path) -> None:
    verdicts = judge("scaled", batch("a", "bb"), factor=3)
    assert [(v.reward, v.judge) for v in verdicts] == [(3.0, "scaled"), (6.0, "scaled")]


def test_a_class_is_called_with_whole_prompts(judge: Judge) -> None:
    several = [sample(str(k), number) for number in range(10) for k in range(8)]
    assert {v.reward for v in judge("Sized", several)} == {32.0, 16.0}
    one_prompt = [sample(str(k)) for k in range(50)]
    assert {v.reward for v in judge("Sized", one_prompt)} == {50.0}


def test_a_failed_call_is_made_again_sample_by_sample(judge: Judge) -> None:
    verdicts = judge("Sized", batch("a", "raise", "b", "short", "c"))
    assert [v.reward for v in verdicts] == [1.0, None, 1.0, None, 1.0]
    assert "sample sample-1-raise: RuntimeError: cannot do this one" in verdicts[1].rationale
    assert "returned 0 verdicts for 1 samples" in verdicts[3].rationale


def test_a_call_that_hangs_costs_only_the_sample_it_hangs_on(judge: Judge) -> None:
    verdicts = judge("Sized", batch("a", "hang", "b"), timeout=1.0)
    assert [v.status for v in verdicts] == ["ok", "timeout", "ok"]


def test_verdicts_in_the_wrong_order_are_noticed(judge: Judge) -> None:
    verdicts = judge("Sized", batch("a", "swap"))
    assert [v.status for v in verdicts] == ["error", "error"]
    assert "the verdict is of another sample, sample-1-swap" in verdicts[0].rationale


def test_a_judge_that_cannot_be_built_stops_the_run(judge: Judge) -> None:
    with pytest.raises(UsageError, match=r"'my_judges.py:Broken' cannot be built: .*No such file"):
        judge("Broken", batch("a"), path="/nowhere/at/all")


def test_a_judge_that_was_edited_meanwhile_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    file.write_text("def f(sample):\n    return 1\n")
    spec = JudgeSpec(f"{file}:f")
    spec.validate()
    file.write_text("def f(sample):\n    return 2\n")
    pool = pool_of(spec, cluster)
    with pytest.raises(UsageError, match=r"'edited.py:f' is not the one that the run began with"):
        by_pool(pool, batch("a"))
    pool.close()


def test_a_trl_reward_function_gets_conversations_and_columns(judge: Judge) -> None:
    samples = [
        sample("yes", 0, answer="yes", topic="t", level=1),
        sample("no", 1, answer="yes", topic="t"),
        sample("yes", 2, answer="yes"),
    ]
    verdicts = judge("trl_reward", samples, weight=2.0)
    assert [v.reward for v in verdicts] == [2.01, 0.01, None]
    assert verdicts[2].status == "abstained"


def test_a_trl_reward_function_without_its_column_says_so(judge: Judge) -> None:
    (verdict,) = judge("trl_needs", batch("a"))
    assert verdict.status == "error"
    assert "asks for difficulty, which the prompts have no column for" in verdict.rationale


def test_reward_functions_of_trl_itself(cluster: Cluster) -> None:
    samples = [
        sample("<think>\nhm\n</think>\n$\\boxed{\\frac{1}{2}}$", 0, answer="$0.5$"),
        sample("$\\frac{1}{3}$", 1, answer="$0.5$"),
    ]
    for name, rewards in {"think_format_reward": [1, 0], "accuracy_reward": [1, 0]}.items():
        pool = pool_of(JudgeSpec(f"trl.rewards:{name}"), cluster)
        verdicts = by_pool(pool, samples)
        pool.close()
        assert [v.reward for v in verdicts] == rewards, verdicts


def test_what_one_sample_does_to_a_judge_stays_with_it(judge: Judge) -> None:
    cases = {
        "raise": ("error", "ValueError: first line (my_judges.py:"),
        "nan": ("error", "the reward is nan, not a finite number"),
        "text": ("error", "the reward is '0.7', a str, not a number"),
        "array": ("error", "ValueError"),
        "none": ("abstained", ""),
        "unparsed": ("unparsed", "no score in it"),
        "both": ("error", "a verdict is unparsed or has a reward (1), not both"),
        "exit": ("error", "SystemExit: 0"),
        "mutate": ("error", "FrozenInstanceError"),
    }
    names = [name for case in cases for name in (case, "fine")]
    shared = Prompt.of("question", topic="four")
    samples = [Sample(f"{i}-{n}", shared, i, n) for i, n in enumerate([*names, "columns"])]
    *verdicts, last = judge("wild", samples)
    assert last.reward == 4  # the mutated columns were a copy
    for name, verdict, fine in zip(cases, verdicts[::2], verdicts[1::2], strict=True):
        status, rationale = cases[name]
        assert (verdict.status, verdict.reward) == (status, None)
        assert rationale in verdict.rationale
        assert "second line" not in verdict.rationale
        if status == "error":
            assert verdict.rationale.startswith(
                f"judge my_judges.py:wild, sample {verdict.sample_id}"
            )
        assert (fine.reward, fine.answer, fine.rationale) == (0.5, "7", "fine")
    assert verdicts[10].cost_usd == 0.25


def test_numbers_of_many_kinds_are_rewards(judge: Judge, capfd: pytest.CaptureFixture[str]) -> None:
    verdicts = judge("wild", batch("numpy", "true", "print"))
    assert [v.reward for v in verdicts] == [0.5, 1.0, 1.0]
    assert "xxx" not in capfd.readouterr().out


def test_a_lost_process_costs_only_the_sample_it_was_lost_on(judge: Judge) -> None:
    names = ["ok", "ok", "die", "die", "ok", "crash", "ok"]
    verdicts = judge("wild", batch(*names))
    assert [v.status for v in verdicts] == ["ok" if n == "ok" else "error" for n in names]
    assert "sample sample-2-die: it ended its process" in verdicts[2].rationale


def test_a_hang_costs_only_the_sample_that_hangs(judge: Judge) -> None:
    # Not by sleeping: this holds the interpreter lock, so nothing in its process can end it.
    verdicts = judge("wild", batch("ok", "backtrack", "ok"), timeout=1.0)
    assert [v.status for v in verdicts] == ["ok", "timeout", "ok"]
    assert [v.reward for v in verdicts] == [0.5, None, 0.5]


def test_a_judge_that_always_dies_ends_the_run(judge: Judge, monkeypatch: Any) -> None:
    monkeypatch.setattr("selfkd.judgepool.LOSSES", 1)
    with pytest.raises(InfrastructureError, match="lost its process on 2 samples in a row"):
        judge("fatal", batch("a", "b", "c"))


def test_batches_come_in_order_with_bounded_look_ahead(cluster: Cluster, folder: Path) -> None:
    drawn: list[int] = []

    def batches() -> Iterator[Batch]:
        for i in range(8):
            drawn.append(i)
            yield Batch.of([sample("x" * (i + 1), k) for k in range(5)])

    spec = resolve_judge("my_judges.py:length", folder)
    pool = pool_of(spec, cluster, workers=2)
    rewards = []
    for verdicts in pool.judge_batches(batches()):
        rewards.append(verdicts.column("reward").to_pylist())
        assert len(drawn) - len(rewards) <= 2  # one of the three is in our hands
    pool.close()
    assert rewards == [[float(i)] * 5 for i in range(1, 9)]


def test_a_stop_is_heeded_while_a_judge_works(cluster: Cluster, folder: Path) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyError("stop")

    spec = resolve_judge("my_judges.py:wild", folder)
    pool = pool_of(spec, cluster, check=check)
    before = time.monotonic()
    with pytest.raises(KeyError, match="stop"):
        by_pool(pool, batch("ok", "hang"))
    pool.close()
    assert time.monotonic() - before < 20


def test_many_batches_come_back_whole(cluster: Cluster) -> None:
    samples = [
        Sample(str(i), Prompt.of(f"{i}+1", str(i + 1)), 0, f"It is {i + 1}.", tuple(range(30)))
        for i in range(20_000)
    ]
    pool = pool_of(JudgeSpec("number"), cluster)
    verdicts = by_pool(pool, samples[:512])
    batches = (Batch.of(samples[i : i + 1000]) for i in range(0, 20_000, 1000))
    every = list(pool.judge_batches(batches))
    pool.close()
    assert all(v.reward == 1 for v in verdicts)
    assert sum(map(len, every)) == 20_000


# -- specs and options ----------------------------------------------------------------------------


def test_paths_are_relative_to_the_given_folder(folder: Path) -> None:
    spec = resolve_judge({"use": "my_judges.py:polite", "word": "thanks"}, folder)
    assert spec.spec == f"{folder}/my_judges.py:polite"
    assert spec.options == {"word": "thanks"}
    assert resolve_judge("number", folder).spec == "number"
    assert resolve_judge("trl.rewards:x", folder).spec == "trl.rewards:x"
    for nothing in (None, "", {}, {"tolerance": 1}, {"use": 3}):
        with pytest.raises(UsageError, match="names no judge"):
            resolve_judge(nothing, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        (
            "number",
            {"tolerence": 1},
            "'number' has no option 'tolerence' — did you mean tolerance?",
        ),
        (
            "number",
            {"tolerance": -1},
            "option tolerance = -1: should be greater than or equal to 0",
        ),
        ("number", {"tolerance": "x"}, "option tolerance = 'x': should be a valid number"),
        (
            "number",
            {"truncated": "no"},
            "should be 'wrong' or 'read' — truncated: A completion cut",
        ),
        ("my_judges.py:polite", {"word": "x"}, "option word = 'x': String should have at least 2"),
        ("my_judges.py:length", {"word": "x"}, "has no option 'word' — options: none"),
        ("my_judges.py:scaled", {"factr": 1}, "no option 'factr' — did you mean factor?"),
        ("my_judges.py:scaled", {"factor": 0}, "option factor = 0: should be greater than 0"),
        ("my_judges.py:Broken", {}, "needs its option 'path'"),
        ("my_judges.py:trl_reward", {"topic": 1}, "no option 'topic' — options: weight"),
        ("my_judges.py:lenght", {}, "did you mean 'length'?"),
        ("numbr", {}, "did you mean 'number'?"),
    ],
)
def test_wrong_options_are_named(
    folder: Path, use: str, options: dict[str, Any], message: str
) -> None:
    spec = resolve_judge({"use": use, **options}, folder)
    with pytest.raises(UsageError) as caught:
        spec.validate()
    assert message in str(caught.value)


def test_a_file_that_prints_or_exits_when_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "script.py"
    file.write_text("print('hello')\ndef f(sample):\n    return 1\n")
    assert JudgeSpec(f"{file}:f").name == "script.py:f"
    assert capsys.readouterr().out == ""
    file.write_text("def f(sample):\n    return 1\nraise SystemExit(0)\n")
    with pytest.raises(UsageError, match="cannot be imported: SystemExit: 0"):
        JudgeSpec(f"{file}:f").validate()


def test_identity_follows_source_and_options(folder: Path, tmp_path: Path) -> None:
    plain = JudgeSpec("number")
    assert plain.identity() == JudgeSpec("number", {"tolerance": 0}).identity()
    assert plain.identity() != JudgeSpec("number", {"tolerance": 0.1}).identity()
    assert plain.identity() != JudgeSpec("exact").identity()
    file = tmp_path / "mine.py"
    file.write_text("def f(sample):\n    return 1\n")
    before = JudgeSpec(f"{file}:f").identity()
    file.write_text("def f(sample):\n    return 2\n")
    assert JudgeSpec(f"{file}:f").identity() != before


def test_judges_say_whether_they_are_gold(folder: Path) -> None:
    assert JudgeSpec("number").gold
    assert resolve_judge("my_judges.py:scaled", folder).gold
    assert not resolve_judge("my_judges.py:scaled", folder).needs_answer
    assert not resolve_judge("my_judges.py:length", folder).gold


def test_options_are_documented(folder: Path) -> None:
    polite = options_doc(find_judge(f"{folder}/my_judges.py:polite"))
    assert polite == [("word", "str", "please", "What to say."), ("bonus", "float", 0.0, "")]
    tolerance = options_doc(find_judge("number"))[0]
    assert tolerance == (
        "tolerance",
        "float",
        0.0,
        "Largest difference that still counts as equal.",
    )
    assert options_doc(find_judge("regex"))[0][1:3] == ("re.Pattern[str] (required)", None)


def tally(**counts: int) -> Tally:
    """Verdicts, so many of each status."""
    found = Tally()
    for status, count in counts.items():
        reward = 1.0 if status == "ok" else None
        row = Verdict("s", "p", "mine", reward, status, rationale=f"{status} of s")  # type: ignore[arg-type]
        found.add(rows_table([row] * count, VERDICTS))
    return found


def limits(max_failure_rate: float, max_unscored: float = 1.0) -> JudgingConfig:
    return JudgingConfig.model_validate(
        {"max_failure_rate": max_failure_rate, "max_unscored": max_unscored}
    )


def test_failures_above_the_allowed_share_end_the_run() -> None:
    tally().check(limits(0.0), 0)
    tally(ok=90, error=5, timeout=5).check(limits(0.1), 100)
    tally(unparsed=50, abstained=50).check(limits(0.0), 100)
    with pytest.raises(DataError) as caught:
        tally(ok=80, error=7, timeout=4, unparsed=9).check(limits(0.1), 100)
    expected = "judge 'mine' failed on 11 of 100 samples (7 error, 4 timeout, 9 unparsed), "
    assert str(caught.value).startswith(
        expected + "more than the share 0.1 of 100; for example error of s"
    )
    assert caught.value.exit_code == 4
    # Told as soon as it is certain, and not before.
    tally(error=10).check(limits(0.1), 100)
    with pytest.raises(DataError, match="failed on 11 of 11 samples"):
        tally(error=11).check(limits(0.1), 100)


def test_too_few_rewards_end_the_run_whatever_the_reason() -> None:
    tally().check(limits(1.0, 0.0), 0)
    tally(ok=50, unparsed=30, abstained=20).check(limits(1.0, 0.5), 100)
    with pytest.raises(DataError) as caught:
        tally(ok=49, unparsed=30, abstained=20, error=1).check(limits(1.0, 0.5), 100)
    assert str(caught.value).startswith(
        "judge 'mine' gave 51 of 100 samples no reward (20 abstained, 1 error, 30 unparsed), more "
        "than the share 0.5 of 100; for example unparsed of s"
    )
    assert caught.value.exit_code == 4 and "max_unscored" in str(caught.value)


# -- selfkd judge test ----------------------------------------------------------------------------


def test_a_judge_is_tried_on_a_file(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    messages = [{"role": "user", "content": "4+4"}]
    rows = [
        {"prompt": "2+2", "completion": "It is 4", "answer": 4, "gold": True},
        {"prompt": messages, "completion": "9", "answer": "8", "level": 3, "policy": "round-1"},
        {"prompt": "1+1", "completion": "2", "answer": "2", "finish": "length"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    labelled = read_samples_file(file)
    assert labelled.samples[1].columns == {"level": 3}
    assert [s.policy for s in labelled.samples] == ["base", "round-1", "base"]
    assert labelled.gold == {"line-1": 1.0}  # and no judge is shown it
    assert labelled.samples[0].columns == {}

    spec, gold = spec_of("number", ["tolerance=0.5"]), spec_of("number", ["truncated=read"])
    controls = ControlOptions.model_validate({"per_round": 2})
    trial = try_judge(
        spec, labelled, repeats=2, controls=controls, gold_judge=gold, cluster=cluster
    )
    assert [[v.reward for v in verdicts] for verdicts in trial.passes] == [[1, 0, 0], [1, 0, 0]]
    assert trial.gold == {"line-1": 1, "line-2": 0, "line-3": 1}
    card = report_card(trial)
    assert card["gold"]["accuracy"] == pytest.approx(2 / 3)
    assert card["retest"]["changed"] == 0 and card["swap"] is None
    assert card["controls"]["gold"]["count"] == 2
    assert not any(kind["failed"] for kind in card["controls"].values())
    assert render_card(card, trial, 2).splitlines()[:4] == [
        "line-1  1  read '4'",
        "line-2  0  read '9'",
        "... and 1 more (--json has them all)",
        "",
    ]
    with pytest.raises(UsageError, match="no option 'tol'"):
        spec_of("number", ["tol=1"])
    with pytest.raises(UsageError, match="is no option"):
        spec_of("number", ["tolerance"])


def test_a_judge_of_whole_prompts_is_shown_them_in_both_orders(
    cluster: Cluster, folder: Path
) -> None:
    spec = resolve_judge("./my_judges.py:First", folder)
    samples = [sample(text, number) for text in "abc" for number in range(2)]
    trial = try_judge(spec, Labelled(samples, {}), repeats=2, cluster=cluster)
    assert report_card(trial)["swap"] == {"pairs": 6, "consistent": pytest.approx(2 / 3)}
    assert [v.sample_id for v in trial.passes[1]] == [s.id for s in samples]


def settled(log: Path) -> list[str]:
    """The lines of a file once nobody writes to it: a process that was ended may do so yet."""
    before, now = "", log.read_text()
    while now != before:
        time.sleep(1)
        before, now = now, log.read_text()
    return now.splitlines()


def test_verdicts_that_came_before_a_stop_are_not_paid_again(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    log, samples = folder / "paid.txt", batch(*(f"text {k}" for k in range(60)))

    def check() -> None:
        if log.exists() and log.read_text().count("\n") >= 20:
            raise KeyError("stop")

    spec = resolve_judge({"use": "./my_judges.py:paid", "log": str(log)}, folder)
    assert spec.cacheable
    cache = VerdictCache(spec.identity(), path=tmp_path / "verdicts")
    pool = pool_of(spec, cluster, check=check)
    with pytest.raises(KeyError, match="stop"):
        by_pool(pool, samples, cache=cache)
    pool.close()
    paid = settled(log)
    cache = VerdictCache(spec.identity(), path=tmp_path / "verdicts")
    pool = pool_of(spec, cluster)
    verdicts = by_pool(pool, samples, cache=cache)
    known = cache.hits
    pool.close()
    again = log.read_text().splitlines()[len(paid) :]
    assert 0 < known == len(samples) - len(again)
    assert len({*paid} & {*again}) <= 8  # those that were on their way
    assert [v.reward for v in verdicts] == [float(len(s.completion)) for s in samples]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "completion": "b"', "not JSON"),
        ("[1]", "a sample is an object"),
        ('{"completion": "b", "answer": "1"}', "prompt is neither text nor a list"),
        ('{"prompt": [], "completion": "b"}', "prompt is neither text nor a list"),
        ('{"prompt": "a", "answer": "1"}', "completion is None, not text"),
        ('{"prompt": "a", "completion": "b"}', "the judge needs an answer"),
        ('{"prompt": "a", "completion": "b", "answer": [1]}', r"answer is \[1\], not text"),
        ('{"prompt": "a", "completion": "b", "finish": "x"}', "finish is 'x'"),
        ('{"prompt": "a", "completion": "b", "answer": "1", "gold": "1"}', "gold is '1', not a"),
        ('{"prompt": "a", "completion": "b", "answer": "1", "gold": NaN}', "gold is nan, not a"),
        ('{"prompt": "a", "completion": "b", "answer": "1", "policy": 1}', "policy is 1, not a"),
    ],
)
def test_bad_samples_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "answer": "1"}\n' + line + "\n")
    with pytest.raises(DataError, match=re.escape(f"{file}:2: ") + message):
        read_samples_file(file, needs_answer=True)


def test_a_judge_that_lacks_something_says_so_with_its_own_remedy(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "picky.py").write_text(
        "import selfkd\n"
        "from selfkd.errors import UsageError\n"
        "def check(options):\n"
        "    if options.tool:\n"
        "        raise UsageError(f'there is no {options.tool}', remedy='install it')\n"
        "@selfkd.judge('picky', ready=check)\n"
        "def picky(sample, *, tool: str = ''):\n"
        "    return 1\n"
    )
    JudgeSpec(f"{tmp_path}/picky.py:picky").check_ready()
    spec = JudgeSpec(f"{tmp_path}/picky.py:picky", {"tool": "hammer"})
    pool = pool_of(spec, cluster)
    with pytest.raises(UsageError, match="there is no hammer — install it"):
        by_pool(pool, batch("a"))
    pool.close()
