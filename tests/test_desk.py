"""The desk that generation and judging share: one engine thread, whatever the order of orders."""

import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfkd.errors import InfrastructureError
from selfkd.sampling.base import Answer, Completion, Request, Weighing, Work
from selfkd.sampling.desk import Desk
from selfkd.sampling.transformers import TransformersEngine
from tests.engines import drawn

SAMPLING = drawn(max_tokens=4)


class Slow:
    """Answers one request a step, the urgent ones first, and only when it is told to go on."""

    context, structured = 100, False

    def __init__(self) -> None:
        self.policy = "base"
        self.thread = threading.current_thread()
        self.lines: dict[bool, list[str]] = {True: [], False: []}
        self.given: list[str] = []
        self.go = threading.Semaphore(0)
        self.dropped: list[str] = []
        self.fail: Exception | None = None

    @property
    def busy(self) -> bool:
        return any(self.lines.values())

    def add(self, work: Work) -> None:
        if work.schema == "bad":
            raise ValueError("no such schema")
        self.lines[work.urgent] += [r.id for r in work.requests]
        self.given += [r.id.partition("/")[2] for r in work.requests]

    def step(self) -> list[tuple[str, Answer]]:
        assert threading.current_thread() is self.thread
        self.go.acquire(timeout=5)
        if self.fail:
            raise self.fail
        line = self.lines[True] or self.lines[False]
        return [(line.pop(0), [Completion("", (), "stop")])] if line else []

    def drop(self, ids: Iterable[str]) -> None:
        gone = set(ids)
        self.dropped += sorted(gone)
        self.lines = {u: [i for i in line if i not in gone] for u, line in self.lines.items()}

    def load(self, policy: str, path: str) -> None:
        assert not self.busy and threading.current_thread() is self.thread
        self.policy = policy

    def sleep(self) -> bool:
        return False

    def logprobs(self, sequences: object) -> list[list[float]]:
        return []

    def last_logprobs(self, sequence: object, count: int) -> list[float]:
        return []


def work(*ids: str, urgent: bool = False, schema: str | None = None) -> Work:
    return Work(tuple(Request(i, (1,)) for i in ids), SAMPLING, schema, urgent)


@pytest.fixture
def desk() -> Desk:
    return Desk(Slow)


def slow(desk: Desk) -> Slow:
    assert isinstance(desk.engine, Slow)
    return desk.engine


def test_an_urgent_call_is_answered_while_others_are_still_being_generated(desk: Desk) -> None:
    generated = desk.answers("base", work("a", "b", "c"))
    slow(desk).go.release()
    assert next(generated)[0] == "a"
    judged = desk.answers("base", work("a", urgent=True))
    slow(desk).go.release(3)
    assert [i for i, _ in judged] == ["a"]  # the same id as another's: each gets its own answer
    assert [i for i, _ in generated] == ["b", "c"]


def test_what_needs_the_engine_alone_waits_and_new_work_waits_behind_it(desk: Desk) -> None:
    first = desk.answers("base", work("a"))
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(desk.alone, lambda engine: engine.load("round-1", ""))
        with pytest.raises(TimeoutError):
            loading.result(timeout=0.2)
        later = desk.answers("base", work("b"))
        slow(desk).go.release(2)
        assert [i for i, _ in first] == ["a"]
        loading.result(timeout=5)
    with pytest.raises(InfrastructureError, match="holds round-1, asked for samples of base"):
        next(later)


def test_a_failure_is_told_to_everybody_and_a_refused_order_to_its_owner(desk: Desk) -> None:
    bad = desk.answers("base", work("x", schema="bad"))
    one, other = desk.answers("base", work("a")), desk.answers("base", work("b", "c"))
    with pytest.raises(ValueError, match="no such schema"):
        next(bad)
    slow(desk).go.release()
    assert next(one)[0] == "a"
    slow(desk).fail = RuntimeError("broken")
    slow(desk).go.release()
    with pytest.raises(RuntimeError, match="broken"):
        list(other)
    slow(desk).fail = None
    slow(desk).go.release(9)
    assert [i for i, _ in desk.answers("base", work("d"))] == ["d"]
    with pytest.raises(ZeroDivisionError):
        desk.alone(lambda engine: 1 // 0)


def test_an_engine_that_forgets_a_request_is_found_out(desk: Desk) -> None:
    forgotten = desk.answers("base", work("a", "b"))
    slow(desk).go.release()
    next(forgotten)
    slow(desk).lines = {True: [], False: []}
    slow(desk).go.release(9)
    with pytest.raises(InfrastructureError, match="left 1 requests without an answer"):
        next(forgotten)


def test_nobody_works_for_one_who_gave_up(desk: Desk) -> None:
    given_up = desk.answers("base", work("a", "b", "c"))
    slow(desk).go.release()
    next(given_up)
    assert isinstance(given_up, Generator)
    given_up.close()
    slow(desk).go.release(9)
    assert [i for i, _ in desk.answers("base", work("d"))] == ["d"]
    # b may have been in work already.
    assert {name.partition("/")[2] for name in slow(desk).dropped} in ({"b", "c"}, {"c"})


def test_the_engine_is_given_more_only_as_its_answers_are_taken(desk: Desk) -> None:
    slow(desk).go.release(99)
    generated = desk.answers("base", work(*"abcdefg"), at_once=2)
    taken = ""
    # What was given once all of that is done: always two more than are taken, and never four.
    for given in ("ab", "ab", "abcd", "abcd", "abcdef", "abcdef", "abcdefg", "abcdefg"):
        assert "".join(desk.alone(lambda engine: engine.given)) == given  # type: ignore[attr-defined]
        taken += next(generated, ("", []))[0]
    assert taken == "abcdefg"


def test_who_gives_up_leaves_nothing_that_was_not_handed_in(desk: Desk) -> None:
    given_up = desk.answers("base", work(*"abcde"), at_once=2)
    slow(desk).go.release(9)
    next(given_up)
    assert isinstance(given_up, Generator)
    given_up.close()
    assert [i for i, _ in desk.answers("base", work("f"))] == ["f"]
    assert slow(desk).given == ["a", "b", "f"]


def test_an_engine_that_cannot_start_says_so_at_once() -> None:
    def start() -> Slow:
        raise InfrastructureError("no memory")

    with pytest.raises(InfrastructureError, match="no memory"):
        Desk(start)


# -- transformers ---------------------------------------------------------------------------------

PROMPT = (10, 11, 12, 13)
CONTINUATIONS = ((20,), (21,), (20, 22), (23, 24, 25), (23, 24, 26))


def engine(path: Path) -> TransformersEngine:
    return TransformersEngine("base", str(path), dtype="float32", max_num_seqs=2)


def test_continuations_are_weighed_as_the_model_does(tiny_model: Path) -> None:
    weighing = Weighing("w", PROMPT, CONTINUATIONS)
    assert [len(indices) for indices in weighing.rows().values()] == [2, 1, 2]
    long = Weighing("long", (9,) * 256, ((20,),))
    sampler = engine(tiny_model)
    sampler.add(Work((weighing, long), urgent=True))
    found: dict[str, Answer] = {}
    while sampler.busy:
        found |= dict(sampler.step())
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = []
    for tokens in CONTINUATIONS:
        ids = torch.tensor([[*PROMPT, *tokens]])
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        after = range(len(PROMPT) - 1, ids.shape[1] - 1)
        expected.append(sum(log_probs[i, ids[0, i + 1]].item() for i in after))
    assert found == {"w": pytest.approx(expected, abs=1e-4), "long": []}


def test_what_is_generated_does_not_depend_on_what_is_judged_beside_it(tiny_model: Path) -> None:
    requests = tuple(Request(f"r{i}", PROMPT, n=2) for i in range(3))
    warm = drawn(temperature=1.0, max_tokens=6)
    alone, beside = engine(tiny_model), engine(tiny_model)
    alone.add(Work(requests, warm))
    beside.add(Work(requests, warm))
    beside.add(
        Work((Request("j", PROMPT, n=2),), drawn(temperature=0.5, max_tokens=3), urgent=True)
    )
    order = [i for i, _ in beside.step()]
    assert order == ["j"]
    found: list[dict[str, Answer]] = [{}, {}]
    for sampler, answers in zip((alone, beside), found, strict=True):
        while sampler.busy:
            answers |= dict(sampler.step())
    assert found[0] == found[1]
