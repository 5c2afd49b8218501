"""Judges' calls to a real server on this machine, which misbehaves in every way that servers do."""

import asyncio
import itertools
import json
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from selfkd.errors import InfrastructureError, SelfkdError, Stopped, UsageError
from selfkd.judgecalls import Call, Choices, Reply, StopJudging
from selfkd.judging import JudgeSpec
from selfkd.sampling.base import Sampling
from selfkd.served.calls import server_calls
from selfkd.served.connection import Connection
from selfkd.served.faults import retry_after
from selfkd.served.options import ServerOptions
from selfkd.served.pace import Pace
from selfkd.served.scoring import VllmTeacher
from selfkd.teaching import Lesson, ServedTeacher
from tests.servers import Asked, Host, Server, failed, hosting, said


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosting() as listening:
        yield listening


@pytest.fixture
def server(host: Host) -> Server:
    return host.fresh()


def calls(*questions: str, n: int = 1, **fields: Any) -> list[Call]:
    sampling = Sampling.model_validate({"max_tokens": 20})
    return [
        Call(f"sample-{q}", ({"role": "user", "content": q},), sampling, n, **fields)
        for q in questions
    ]


def options(server: Server, **given: Any) -> ServerOptions:
    return ServerOptions.model_validate({"model": "judge-1", "base_url": server.url, **given})


def ask(
    server: Server, requests: list[Call], folder: Path | None = None, **given: Any
) -> list[Reply]:
    return server_calls(options(server, **given), folder).complete(requests)


def stopped(server: Server, *questions: str, **given: Any) -> SelfkdError:
    with pytest.raises(StopJudging) as caught:
        ask(server, calls(*(questions or ("q",))), **given)
    return caught.value.error


QUESTIONS = [f"question {i}" for i in range(24)]


def test_calls_are_answered_in_order_and_many_at_once(server: Server) -> None:
    server.delay = 0.02
    server.behave = lambda asked: f"Score: {asked.text[-1]}"
    replies = ask(server, calls(*QUESTIONS), concurrency=6)
    assert [r.texts for r in replies] == [(f"Score: {q[-1]}",) for q in QUESTIONS]
    assert {(r.finishes, r.prompt_tokens, r.tokens) for r in replies} == {(("stop",), 10, 5)}
    assert 4 <= server.most_running <= 6
    body = server.asked[0].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge-1", 20, 1.0)
    assert "n" not in body and "stop" not in body and "top_k" not in body


def test_what_a_server_does_not_take_can_be_left_out_and_more_be_added(server: Server) -> None:
    schema = {"type": "object"}
    given: dict[str, Any] = {"omit": ["temperature", "top_p"], "extra": {"effort": "low"}}
    given |= {"max_tokens_name": "max_completion_tokens", "structured": True}
    ask(server, calls("q", schema=schema), **given)
    body = server.asked[0].body
    assert body.keys() == {
        *("model", "messages", "max_completion_tokens", "effort", "response_format")
    }
    assert body["response_format"]["json_schema"]["schema"] == schema
    ask(server, calls("q", schema=schema))
    assert "response_format" not in server.asked[1].body


def test_a_server_that_writes_one_answer_at_a_time_is_asked_again(server: Server) -> None:
    server.behave = lambda asked: said(f"draw {asked.number}", {**asked.body, "n": 1})
    (reply,) = ask(server, calls("q", n=3))
    assert reply.texts == ("draw 1", "draw 2", "draw 3")
    assert [a.body.get("n") for a in server.asked] == [3, 2, None]
    assert (reply.prompt_tokens, reply.tokens) == (30, 15)


async def _slowly(asked: Asked) -> Any:
    """A byte now and then, for ever."""

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    return StreamingResponse(drip(), media_type="application/json")


async def _hang(asked: Asked) -> Any:
    await asyncio.sleep(60)


async def _cut_off(asked: Asked) -> Any:
    async def half() -> AsyncIterator[bytes]:
        yield bytes(said("Score: 4", asked.body).body)[:60]

    return StreamingResponse(half(), media_type="application/json")


async def _broken_off(asked: Asked) -> Any:
    async def half() -> AsyncIterator[bytes]:
        yield b'{"choices": ['

    return StreamingResponse(
        half(), media_type="application/json", headers={"content-length": "500"}
    )


TROUBLES: dict[str, Any] = {
    "429": lambda a: failed(429, "slow down"),
    "500": lambda a: failed(500),
    "503 and html": lambda a: PlainTextResponse("<html>down</html>", 503),
    "html": lambda a: PlainTextResponse("<html>welcome</html>"),
    "no object": lambda a: JSONResponse([1, 2]),
    "an error as an answer": lambda a: JSONResponse({"error": {"message": "overloaded"}}),
    "truncated json": _cut_off,
    "a connection that breaks off": _broken_off,
    "hang": _hang,
    "slow loris": _slowly,
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_that_passes_loses_no_call_and_repeats_none_that_was_answered(
    server: Server, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfkd.served.connection.BACKOFF", (0.01, 0.05))
    patient = trouble not in ("hang", "slow loris")
    bad = TROUBLES[trouble]
    served: Counter[str] = Counter()

    def behave(asked: Asked) -> Any:
        if asked.attempt == 1 and asked.text in QUESTIONS[:3]:
            return bad(asked)
        served[asked.text] += 1
        return None

    server.behave = behave
    replies = ask(server, calls(*QUESTIONS[:8]), timeout=30 if patient else 1, deadline=60)
    assert [r.texts for r in replies] == [("Score: 4",)] * 8
    # On a busy machine the impatient may give up an answer that was on its way.
    assert served == Counter(QUESTIONS[:8]) or not patient


def test_a_pause_that_the_server_asks_for_holds_for_all_calls(server: Server) -> None:
    told: list[tuple[float, int]] = []

    async def behave(asked: Asked) -> Any:
        await asyncio.sleep(0.1 if asked.number == 2 else 0.3)
        if asked.number == 2:
            told.append((time.monotonic(), server.running))
            return failed(429, retry_after="1")
        return None

    server.behave = behave
    replies = ask(server, calls(*QUESTIONS[:12]), concurrency=8)
    assert [r.texts for r in replies] == [("Score: 4",)] * 12
    ((when, running),) = told
    assert running == 4  # the others were answered, and made room, long before the pause was over
    later = [t - when for t in server.times if t > when]
    assert len(later) == 12 - 3 and min(later) >= 1


def test_trouble_halves_what_is_under_way_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfkd.served.connection.BACKOFF", (0.01, 0.05))
    first: list[int] = []
    later: list[int] = []

    async def behave(asked: Asked) -> Any:
        if asked.number <= 40:
            await asyncio.sleep(0.05)
        elif asked.number <= 48:  # all of them together
            await asyncio.sleep(0.7)
            return failed(429, "slow down")
        else:
            (later if len(later) or answered else first).append(server.running)
            await asyncio.sleep(0.1 if answered else 0.5)
            answered.append(asked.number)
        return None

    answered: list[int] = []
    server.behave = behave
    replies = ask(server, calls(*(f"question {i}" for i in range(90))), concurrency=8)
    assert all(r.texts == ("Score: 4",) for r in replies) and len(server.asked) == 98
    assert server.most_running == 8
    assert 2 <= max(first) <= 4
    assert max(later) > 4


def test_repetitions_wait_longer_each_time_and_not_all_as_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[float, float]] = []
    shares = itertools.cycle((0.1, 0.9, 0.5, 0.3))

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return low + next(shares) * (high - low)

    monkeypatch.setattr("selfkd.served.connection.random.uniform", uniform)
    monkeypatch.setattr("selfkd.served.connection.BACKOFF", (0.5, 0.7))
    server.behave = lambda asked: failed(500) if asked.attempt <= 2 else None
    replies = ask(server, calls(*QUESTIONS[:4]))
    assert all(r.texts for r in replies) and len(server.asked) == 12
    assert sorted(ranges) == [(0, 0.5)] * 4 + [(0, 0.7)] * 4
    second = [t for a, t in zip(server.asked, server.times, strict=True) if a.attempt == 2]
    assert max(second) - min(second) > 0.3


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "20"}) == 20
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    date = formatdate(time.time() + 100, usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(100, abs=2)
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "soon"}) is retry_after({}) is None


def test_concurrency_halves_once_for_requests_that_fail_together_and_grows_again() -> None:
    async def scenario() -> None:
        pace = Pace(most=16)
        for _ in range(200):
            pace.went_well()
        assert pace.limit == 16
        sent = [await pace.__aenter__() for _ in range(3)]
        for when in sent:
            pace.overloaded(when)
        assert pace.limit == 8
        pace.overloaded(time.monotonic())
        assert pace.limit == 4
        for _ in range(10):
            pace.overloaded(time.monotonic())
        assert pace.limit == 1
        pace.went_well()
        assert pace.limit == 2

    asyncio.run(scenario())


def test_a_rest_that_is_longer_than_the_deadline_stops_the_run_until_then(server: Server) -> None:
    server.behave = lambda asked: failed(429, "daily limit", retry_after="3600")
    error = stopped(server, deadline=60)
    assert isinstance(error, Stopped)
    assert "asks for 3600 s of rest: HTTP 429: daily limit" in str(error)


def test_a_server_that_is_down_ends_the_run_and_not_every_sample() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = Server(port=unused.getsockname()[1])
    error = stopped(nobody, *QUESTIONS[:5], deadline=2)
    assert isinstance(error, InfrastructureError)
    assert "answered nothing for 2 s: no connection" in str(error)


def test_the_reason_told_is_not_that_the_last_try_was_cut_short(server: Server) -> None:
    server.behave = lambda asked: failed(500, "no room") if asked.attempt == 1 else _hang(asked)
    error = stopped(server, deadline=2)
    assert "answered nothing for 2 s: HTTP 500: no room" in str(error)
    assert len(server.asked) >= 2


def test_one_call_that_never_gets_an_answer_is_given_up_alone(server: Server) -> None:
    connection = Connection(options(server, deadline=5))
    connection._answered = time.monotonic()  # others were answered meanwhile
    assert connection._given_up("HTTP 500: no").error == "no answer within 5 s: HTTP 500: no"
    assert connection._stop is None
    connection._answered -= 6
    connection._given_up("HTTP 500: no")
    assert isinstance(connection._stop, InfrastructureError)


# -- what cannot pass -----------------------------------------------------------------------------

SECRET = "key-7f3a9b-of-the-user"


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        (failed(401, f"Incorrect API key: {SECRET}"), UsageError, "check the key in JUDGE_KEY"),
        (failed(403, "not your region"), UsageError, "refuses access (HTTP 403): not your"),
        (failed(404, "no such model"), UsageError, "has no model 'judge-1', or base_url is wrong"),
        (failed(429, "pay up", "insufficient_quota"), Stopped, "wants money: pay up"),
        (failed(402, "no credit"), Stopped, "pay the account up, then resume"),
        (
            JSONResponse({"error": f"bad {SECRET}"}, headers={"x": "y"}),
            InfrastructureError,
            "answered nothing for 1 s: an error in the answer: bad [key]",
        ),
    ],
)
def test_what_no_repetition_mends_stops_at_once_with_the_remedy(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    response: Any,
    kind: type[SelfkdError],
    message: str,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    server.behave = lambda asked: response
    monkeypatch.setattr("selfkd.served.connection.BACKOFF", (0.3, 0.5))
    deadline = 1 if kind is InfrastructureError else 60
    error = stopped(
        server, *QUESTIONS[:4], api_key_env="JUDGE_KEY", deadline=deadline, concurrency=4
    )
    assert isinstance(error, kind) and message in str(error)
    assert SECRET not in str(error)
    assert server.asked[0].headers["authorization"] == f"Bearer {SECRET}"
    assert len(server.asked) <= 4 or kind is InfrastructureError


def test_a_call_that_is_refused_as_it_is_fails_alone(server: Server) -> None:
    def behave(asked: Asked) -> Any:
        return failed(400, "maximum context length is 8192") if asked.text == "long" else None

    server.behave = behave
    first, long, last = ask(server, calls("a", "long", "b"))
    assert long.error == "HTTP 400: maximum context length is 8192"
    assert first.texts and last.texts and len(server.asked) == 3


def test_if_every_request_is_wrong_the_run_stops_soon(server: Server) -> None:
    server.behave = lambda asked: failed(400, "unknown parameter top_p")
    error = stopped(server, *QUESTIONS, concurrency=1)
    assert "refuses every request: HTTP 400: unknown parameter top_p" in str(error)
    assert "omit" in error.remedy and len(server.asked) == 8


def test_another_model_than_the_one_asked_for_stops_the_run(server: Server, tmp_path: Path) -> None:
    server.behave = lambda asked: said("Score: 5", asked.body, model="cheap-1")
    error = stopped(server)
    assert isinstance(error, UsageError) and "answers as cheap-1" in str(error)
    assert ask(server, calls("q"), answers_as="cheap-1")[0].texts == ("Score: 5",)


@pytest.mark.parametrize(
    ("answers", "same"),
    [
        *((f"judge-1{end}", True) for end in ("", "-2026-01-01", "-20260101", "-08-2026")),
        *((f"judge-1{end}", True) for end in ("-0613", "-001")),
        *((f"judge-1{end}", False) for end in ("-mini", "-mini-2026-01-01", "-5", "-32k", "0")),
    ],
)
def test_a_release_is_the_same_model_and_another_size_is_none(
    server: Server, answers: str, same: bool
) -> None:
    server.behave = lambda asked: said("Score: 5", asked.body, model=answers)
    for asked_for in ("judge-1", "org/judge-1"):
        if same:
            assert ask(server, calls("q"), model=asked_for)[0].texts == ("Score: 5",)
        else:
            assert f"answers as {answers}" in str(stopped(server, model=asked_for))


def test_the_key_is_taken_out_of_whatever_a_server_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    monkeypatch.setattr("selfkd.served.connection.BACKOFF", (0.01, 0.05))

    def behave(asked: Asked) -> Any:
        refusal = {"message": {"refusal": f"Not for {asked.key}."}, "finish_reason": "stop"}
        if asked.attempt == 1 and asked.text == "again":
            return JSONResponse({"error": {"message": f"{'x' * 190}{asked.key}"}})
        return {
            "answer": said(f"Yours is {asked.key}. Score: 4", asked.body),
            "refusal": said("", asked.body, choices=[refusal]),
            "error": failed(400, f"{'x' * 290}{asked.key}"),
            "model": said("", asked.body, model=f"for {asked.key}"),
        }.get(asked.text)

    server.behave = behave
    given = {"api_key_env": "JUDGE_KEY"}
    texts = ("answer", "refusal", "error", "again")
    answer, refusal, error, _ = ask(server, calls(*texts), tmp_path, **given)
    assert answer.texts == ("Yours is [key]. Score: 4",)
    assert refusal.error == "refusal: Not for [key]."
    assert error.error == f"HTTP 400: {'x' * 290}[key]"
    assert "answers as for [key]" in str(stopped(server, "model", **given))
    assert {a.key for a in server.asked} == {SECRET}
    (record,) = tmp_path.iterdir()
    assert record.read_text().count("[key]") == 2 and SECRET[:8] not in record.read_text()


def test_a_key_that_is_no_secret_is_an_ordinary_word(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "content")
    (reply,) = ask(server, calls("q"), api_key_env="JUDGE_KEY")
    assert reply.texts == ("Score: 4",)


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        ({"message": {"refusal": "I cannot."}, "finish_reason": "stop"}, "refusal: I cannot."),
        (
            {"message": {"content": None}, "finish_reason": "content_filter"},
            "refusal: content filter",
        ),
        ({"message": {"content": None}, "finish_reason": "stop"}, "an answer without text"),
        ({"finish_reason": "stop"}, "an answer without a message"),
        (None, "an answer without choices"),
    ],
)
def test_an_answer_without_text_is_an_error_that_keeps_its_cost(
    server: Server, choice: Any, error: str
) -> None:
    choices = [] if choice is None else [choice]
    server.behave = lambda asked: said("", asked.body, choices=choices)
    prices: dict[str, Any] = {"usd_per_million_input": 1e6, "usd_per_million_output": 2e6}
    (reply,) = ask(server, calls("q"), **prices)
    assert (reply.error, reply.texts, reply.cost_usd) == (error, (), 20.0)


def test_what_a_content_filter_stops_is_a_refusal_and_ends_no_run(server: Server) -> None:
    message = "The prompt triggered our content policy"
    server.behave = lambda asked: failed(400, message, "content_filter")
    replies = ask(server, calls(*QUESTIONS), concurrency=1)
    assert {r.error for r in replies} == {f"refusal: {message}"}
    assert len(server.asked) == len(QUESTIONS)


def test_cut_off_answers_are_told(server: Server) -> None:
    choice = {"message": {"content": "Score:"}, "finish_reason": "length"}
    server.behave = lambda asked: said("", asked.body, choices=[choice])
    assert ask(server, calls("q"))[0].finishes == ("length",)


# -- money ----------------------------------------------------------------------------------------

PRICES: dict[str, Any] = {"usd_per_million_input": 1000.0, "usd_per_million_output": 2000.0}
"""A call of 10 tokens read and 5 written costs 0.02."""


@pytest.mark.parametrize(
    ("budget", "said_used", "most"),
    [
        ({"calls": 10}, "10 of 10 calls", 10),
        ({"tokens": 300}, "of 300 tokens", 20),
        ({"usd": 0.2}, "of 0.2 usd", 10),
    ],
)
def test_a_budget_is_never_exceeded_and_the_run_goes_on_when_it_is_raised(
    server: Server, tmp_path: Path, budget: dict[str, Any], said_used: str, most: int
) -> None:
    with pytest.raises(StopJudging) as caught:
        ask(server, calls(*QUESTIONS), tmp_path, budget=budget, **PRICES)
    error = caught.value.error
    assert isinstance(error, Stopped) and said_used in str(error)
    assert f"raise the judge's budget.{next(iter(budget))} and resume" in error.remedy
    first = len(server.asked)
    assert 0 < first <= most
    more = {name: value * 10 for name, value in budget.items()}
    replies = ask(server, calls(*QUESTIONS), tmp_path, budget=more, **PRICES)
    assert len(server.asked) == len(QUESTIONS)  # what was answered is not asked again
    assert [r.texts for r in replies] == [("Score: 4",)] * 24
    assert sum(r.cost_usd for r in replies) == pytest.approx(24 * 0.02)
    exact = {"calls": 24, "tokens": 360, "usd": 0.48}
    name = next(iter(budget))
    with pytest.raises(StopJudging, match=r"used up"):  # what earlier sessions spent counts
        ask(server, calls("new"), tmp_path, budget={name: exact[name]}, **PRICES)
    assert len(server.asked) == 24


def test_a_token_for_each_byte_takes_no_budget_beyond_its_end(
    server: Server, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"why": {"description": "9" * 400}}}

    def behave(asked: Asked) -> Any:
        read = len(asked.text) + len(json.dumps(asked.body["response_format"]))
        usage = {"prompt_tokens": read, "completion_tokens": 20, "total_tokens": read + 20}
        return said("Score: 4", asked.body, usage=usage)

    server.behave, server.delay = behave, 0.2
    numbers = [f"{digit}" * 600 for digit in range(8)]
    given: dict[str, Any] = {"budget": {"tokens": 4000}, "structured": True}
    with pytest.raises(StopJudging, match=r"of 4000 tokens, and one more request may take \d+\)"):
        ask(server, calls(*numbers, schema=schema), tmp_path, **given)
    (file,) = tmp_path.iterdir()
    spent = sum(json.loads(line)["tokens"] for line in file.read_text().splitlines())
    assert 2000 < spent <= 4000


def test_the_record_survives_a_torn_line_and_is_shared(server: Server, tmp_path: Path) -> None:
    one = server_calls(options(server, budget={"calls": 3}), tmp_path)
    other = server_calls(options(server, budget={"calls": 3}), tmp_path)
    one.complete(calls("a", "b"))
    (file,) = tmp_path.iterdir()
    with file.open("ab") as record:
        record.write(b'{"key": "torn')
    other.complete(calls("c"))
    with pytest.raises(StopJudging, match="3 of 3 calls"):
        one.complete(calls("d"))
    rows = [json.loads(line) for line in file.read_text().splitlines() if line[-1:] == "}"]
    assert len(rows) == len(server.asked) == 3


def test_the_same_question_twice_is_two_requests_then_and_on_resume(
    server: Server, tmp_path: Path
) -> None:
    server.behave = lambda asked: f"draw {asked.number}"
    first = [ask_one(r) for r in ask(server, calls("q", "q"), tmp_path, concurrency=1)]
    again = [ask_one(r) for r in ask(server, calls("q", "q"), tmp_path, concurrency=1)]
    assert first == again == ["draw 1", "draw 2"]
    assert len(server.asked) == 2


def ask_one(reply: Reply) -> str:
    (text,) = reply.texts
    return text


def test_a_server_that_does_not_say_what_it_read_is_counted_at_the_most(
    server: Server, tmp_path: Path
) -> None:
    server.behave = lambda asked: said("Score: 1", asked.body, usage=None)
    with pytest.raises(StopJudging, match="tokens"):
        ask(server, calls(*QUESTIONS), budget={"tokens": 200})
    assert 0 < len(server.asked) < 6


# -- log-probabilities ----------------------------------------------------------------------------


def places(*told: dict[str, float]) -> Any:
    """Log-probabilities as a server tells them: the likeliest is what was written."""
    rows = [[{"token": t, "logprob": math.log(p)} for t, p in at.items()] for at in told]
    content = [{**row[0], "top_logprobs": row} for row in rows]
    return {"index": 0, "message": {"content": ""}, "logprobs": {"content": content}}


def weighed(server: Server, opening: str, *told: dict[str, float]) -> Any:
    server.behave = lambda asked: said("", asked.body, choices=[places(*told)])
    caller = server_calls(options(server))
    message = {"role": "user", "content": "rate"}
    (found,) = caller.weigh([Choices("s", (message,), ("Yes", "No", "10"), opening)])
    return found


def test_choices_are_weighed_by_their_first_tokens(server: Server) -> None:
    found = weighed(server, "", {"Yes": 0.5, " Yes": 0.1, "No": 0.2, "1": 0.05, "Maybe": 0.1})
    assert [math.exp(p) for p in found.logprobs] == pytest.approx([0.6, 0.2, 0.05])
    assert (server.asked[0].body["top_logprobs"], server.asked[0].body["max_tokens"]) == (20, 1)
    found = weighed(server, "", {"Yes": 0.9, "": 0.1})
    assert found.logprobs[1:] == (None, None)


def test_an_opening_is_found_in_what_the_server_writes(server: Server) -> None:
    found = weighed(server, "Score: ", {"Score": 1.0}, {":": 1.0}, {" No": 0.7, " Yes": 0.3})
    assert [math.exp(p) for p in found.logprobs[:2]] == pytest.approx([0.3, 0.7])
    missing = weighed(server, "Score: ", {"I": 1.0}, {" think": 1.0})
    assert missing.error == "the answer does not begin with 'Score: '"


def test_a_server_without_log_probabilities_says_so(server: Server) -> None:
    caller = server_calls(options(server))
    message = {"role": "user", "content": "rate"}
    (found,) = caller.weigh([Choices("s", (message,), ("Yes", "No"))])
    assert found.error == "the server tells no log-probabilities"


# -- vLLM's server --------------------------------------------------------------------------------


def as_vllm(asked: Asked) -> Any:
    """Tokens are characters; each is as likely as its code says, and so is the next one."""
    if asked.path == "/tokenize":
        body = asked.body
        text = body.get("prompt") or "".join(m["content"] for m in body["messages"]) + ":"
        assert body.get("add_special_tokens") is False or body["add_generation_prompt"] is True
        return JSONResponse({"tokens": [ord(c) for c in text]})
    assert (asked.path, asked.body["max_tokens"]) == ("/v1/completions", 1)
    places: list[Any] = [None]
    for token in asked.body["prompt"][1:]:
        near = range(token, token + max(1, asked.body["prompt_logprobs"]))
        places.append({str(t): {"logprob": -t / 100, "rank": 1} for t in near})
    choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": places}
    return said("", asked.body, choices=[choice])


def test_vllm_weighs_texts_exactly(server: Server) -> None:
    server.behave = as_vllm
    caller = server_calls(options(server, api="vllm"))
    message = {"role": "user", "content": "q"}
    told, alone = caller.weigh(
        [Choices("s", (message,), ("AB", "AC"), "> "), Choices("t", (message,), ("AB",), "> ")]
    )
    # Of several choices what they share is given; of one, only its opening is.
    assert told.logprobs == pytest.approx([-ord("B") / 100, -ord("C") / 100])
    assert (told.lengths, alone.lengths) == ((1, 1), (2,))
    assert alone.logprobs == pytest.approx([-(ord("A") + ord("B")) / 100])
    read = [a.body["prompt"] for a in server.asked if a.path == "/v1/completions"]
    assert sorted("".join(map(chr, tokens)) for tokens in read) == ["q:> AB", "q:> AB", "q:> AC"]
    assert told.prompt_tokens == 20


def test_a_teacher_on_vllm_tells_the_likeliest_tokens_of_a_completion(server: Server) -> None:
    server.behave = as_vllm
    teacher: ServedTeacher = VllmTeacher(options(server, api="vllm"), top_k=2)
    places = teacher.likeliest([Lesson((1, 2, 3), (10, 20)), Lesson((1,), (30,))])
    assert places == [
        [{10: -0.1, 11: -0.11}, {20: -0.2, 21: -0.21}],
        [{30: -0.3, 31: -0.31}],
    ]
    server.behave = lambda asked: None
    with pytest.raises(InfrastructureError, match="tells no prompt_logprobs: is it vLLM"):
        teacher.likeliest([Lesson((1, 2), (3,))])
    server.behave = lambda asked: failed(404, "no such model")
    with pytest.raises(UsageError, match="leave out api: vllm"):
        teacher.likeliest([Lesson((1, 2), (4,))])


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs its option 'model'"),
        ({"model": "m", "base_url": "localhost:8000"}, "an address such as"),
        ({"model": "m", "base_url": "http://me:pw@host/v1"}, "should hold no key"),
        ({"model": "m", "api_key_env": "not a name"}, "option api_key_env"),
        ({"model": "m", "budget": {"usd": 1}}, "needs the prices"),
        ({"model": "m", "budget": {"calls": 0}}, "option budget.calls = 0"),
    ],
)
def test_options_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        JudgeSpec("teacher", {"judge": "self_reward", **given}).validate()
    assert message in str(caught.value)


def test_a_key_that_is_not_set_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    spec = JudgeSpec("teacher", {"judge": "rubric", "model": "m", "api_key_env": "JUDGE_KEY"})
    with pytest.raises(UsageError, match=r"JUDGE_KEY is not set .* export JUDGE_KEY="):
        spec.check_ready()


def test_how_a_server_is_reached_and_paid_is_no_part_of_the_identity() -> None:
    def identity(**more: Any) -> str:
        return JudgeSpec("teacher", {"judge": "self_reward", "model": "m", **more}).identity()

    same = {"base_url": "http://other:1/v1", "budget": {"calls": 5}, "concurrency": 2}
    assert identity() == identity(**same) == identity(api_key_env="X", timeout=1, deadline=2)
    assert identity() != identity(model="n")
    assert identity() != identity(extra={"seed": 1})
    assert identity() != identity(judge={"use": "self_reward", "draws": 5})
