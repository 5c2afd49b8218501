"""LLM judges on the run's own sampler: real processes, a real engine, a tiny model.

Its weights are random, so what it says means nothing; what must be right is who is asked what, that
calls share the engine with generation, what is recorded, and what a failure costs.
"""

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfkd.chat import load_tokenizer, render
from selfkd.cluster import Cluster
from selfkd.enginecalls import EngineCalls
from selfkd.errors import UsageError
from selfkd.judgecalls import Call, Choices
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec
from selfkd.policies import Policy
from selfkd.records import Sample, Verdict
from selfkd.sampling.actor import Shard
from selfkd.sampling.base import Request
from selfkd.sampling.pool import SamplerPool
from tests.callers import answer, by_pool
from tests.engines import drawn, make_pool, process

SHORT = {"template": "{question}|{response}", "unfenced": True}
ANY_DIGIT = SHORT | {
    "score_pattern": r"^.*([0-9])",
    "truncated": "read",  # random weights seldom stop
    "max_tokens": 24,
    "retries": 0,
    "temperature": 3.0,
}


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[SamplerPool]:
    made = make_pool(cluster, "transformers", dtype="float32", max_num_seqs=8)
    yield made
    made.close()


@pytest.fixture
def calls(pool: SamplerPool, tiny_model: Path) -> EngineCalls:
    policy = Policy("base", tiny_model, "", [])
    return EngineCalls(pool, policy, load_tokenizer(tiny_model), 256, keep=True)


def go_on() -> None: ...


def test_likelihoods_are_the_models(calls: EngineCalls, tiny_model: Path) -> None:
    message = ({"role": "user", "content": "2+2?"},)
    asked = [Choices("s", message, ("4", "55"), "A: "), Choices("s", message, ("4",), "A: ")]
    found: Any = calls.answer(asked, go_on)
    tokenizer = load_tokenizer(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    start = render(tokenizer, message)
    for text, got in (("4", found[0].logprobs[0]), ("55", found[0].logprobs[1]),
                      ("4", found[1].logprobs[0])):  # fmt: skip
        tokens = tokenizer("A: " + text)["input_ids"]
        log_probs = model(torch.tensor([[*start, *tokens]])).logits[0].log_softmax(-1)
        places = range(len(start) + 3, len(start) + len(tokens))  # "A: " is given
        assert got == pytest.approx(
            sum(log_probs[i - 1, tokens[i - len(start)]].item() for i in places), abs=1e-4
        )
    assert [f.lengths for f in found] == [(1, 2), (1,)]


def test_a_prompt_that_does_not_fit_costs_only_its_own_answer(calls: EngineCalls) -> None:
    def call(about: str, size: int) -> Call:
        return Call(about, ({"role": "user", "content": "a" * size},), drawn(max_tokens=8), n=2)

    fits, too_long = calls.answer([call("a", 3), call("b", 250)], go_on)
    assert not fits.error and len(fits.texts) == 2  # type: ignore[union-attr]
    assert "do not fit engine.max_model_len (256)" in too_long.error
    assert [(c.about, len(completions)) for c, completions in calls.told(["b", "a"])] == [("a", 2)]
    assert calls.told(["a"]) == []  # handed out once


def scored(
    cluster: Cluster, spec: JudgeSpec, samples: list[Sample], calls: EngineCalls | None, **more: Any
) -> list[Verdict]:
    options: dict[str, Any] = {"workers": 1, "timeout": 60, "check": go_on} | more
    judges = JudgePool(spec, cluster, **options)
    try:
        return by_pool(judges, samples, calls)
    finally:
        judges.close()


def test_a_judge_in_its_own_process_asks_the_sampler(
    cluster: Cluster, pool: SamplerPool, calls: EngineCalls
) -> None:
    samples = [answer(text) for text in ("4", "5", "a" * 400)]
    expected = JudgeSpec("expected_score", SHORT | {"scale": {"0": 0, "1": 1}, "least_mass": 0})
    one, other, failed = scored(cluster, expected, samples, calls)
    assert 0 < one.reward < 1 and 0 < other.reward < 1  # type: ignore[operator]
    assert one.reward != other.reward
    assert failed.status == "error" and "response_limit" in failed.rationale
    written = JudgeSpec("self_reward", ANY_DIGIT | {"draws": 8, "highest": 9})
    verdicts = scored(cluster, written, samples[:2], calls)
    told = calls.told(s.id for s in samples)
    assert [(c.about, len(drawn)) for c, drawn in told] == [(s.id, 8) for s in samples[:2]]
    for verdict, (_, completions) in zip(verdicts, told, strict=True):
        digits = [d[-1] for c in completions if (d := [x for x in c.text if x in "0123456789"])]
        assert (verdict.status == "ok") == bool(digits)


def test_calls_are_answered_while_the_sampler_generates(
    cluster: Cluster, pool: SamplerPool, calls: EngineCalls, tiny_model: Path
) -> None:
    prompt = tuple(render(load_tokenizer(tiny_model), [{"role": "user", "content": "go on"}]))
    shards = [(i, (Request(f"g{i}", prompt, n=8),)) for i in range(24)]
    stream = pool.generate("base", tiny_model, [], shards, drawn(temperature=3.0, max_tokens=60))
    arrived = [item for item in (next(stream),) if isinstance(item, Shard)]
    call = Call("s", ({"role": "user", "content": "2+2?"},), drawn(max_tokens=4))
    (reply,) = calls.answer([call], go_on)
    assert len(reply.texts) == 1  # type: ignore[union-attr]
    left = [item for item in stream if isinstance(item, Shard)]
    assert len(arrived) + len(left) == 24


def test_a_sampler_that_dies_under_a_call_is_replaced(
    pool: SamplerPool, calls: EngineCalls
) -> None:
    calls.answer([Choices("s", ({"role": "user", "content": "x"},), ("a", "b"))], go_on)
    before, pid = pool.restarts, process(pool)
    os.kill(pid, signal.SIGKILL)
    (found,) = calls.answer([Choices("s", ({"role": "user", "content": "x"},), ("a", "b"))], go_on)
    assert all(math.isfinite(p) for p in found.logprobs)  # type: ignore[union-attr, arg-type]
    assert pool.restarts == before + 1 and process(pool) != pid


OWN = '''
import time

from selfkd.errors import Stopped
from selfkd.judgecalls import StopJudging, waiting

class Patient:
    """Waits for a server of its own for longer than its time-out."""

    calls = True

    def judge(self, samples):
        with waiting():
            time.sleep(2.5)
        return [1.0] * len(samples)

class Broke:
    calls = True

    def judge(self, samples):
        raise StopJudging(Stopped("the budget is spent", where="judge.budget"))

class Torn:
    """Compares; cannot do one of the prompts."""

    compares = True

    def judge(self, samples):
        if any(s.completion == "raise" for s in samples):
            raise ValueError("not these")
        return [float(len(samples))] * len(samples)

def curious(sample, *, caller):
    (told,) = caller.weigh([])or [None]
    return 1.0
'''


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_time_spent_waiting_for_answers_is_not_the_judges(cluster: Cluster, own: str) -> None:
    (verdict,) = scored(cluster, JudgeSpec(f"{own}:Patient"), [answer("4")], None, timeout=0.8)
    assert verdict.reward == 1.0


def test_a_caller_may_end_the_judging_with_an_error_of_its_own(cluster: Cluster, own: str) -> None:
    with pytest.raises(Exception, match="the budget is spent") as caught:
        scored(cluster, JudgeSpec(f"{own}:Broke"), [answer("4")], None)
    assert getattr(caught.value, "exit_code", None) == 3


def test_a_judge_that_compares_is_never_shown_half_a_prompt(cluster: Cluster, own: str) -> None:
    samples = [answer("1", "a"), answer("2", "a"), answer("3", "b"), answer("raise", "b")]
    verdicts = scored(cluster, JudgeSpec(f"{own}:Torn"), samples, None)
    assert [v.reward for v in verdicts] == [2.0, 2.0, None, None]
    assert [v.status for v in verdicts[2:]] == ["error"] * 2


def test_without_a_sampler_a_judge_that_needs_one_says_so(cluster: Cluster, own: str) -> None:
    with pytest.raises(UsageError, match="asks the run's sampler, and there is none"):
        scored(cluster, JudgeSpec("expected_score"), [answer("4")], None)
