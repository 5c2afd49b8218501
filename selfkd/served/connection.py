"""Sends requests to a server, many at once, until each is answered or given up."""

import asyncio
import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from selfkd.errors import InfrastructureError, SelfkdError, Stopped, UsageError
from selfkd.judgecalls import REFUSAL, StopJudging, waiting
from selfkd.records import content_hash
from selfkd.served.faults import Fault, Refused, fault_of
from selfkd.served.options import KEY, SHORTEST_KEY, ServerOptions
from selfkd.served.pace import Pace
from selfkd.served.spending import Amount, Purse, Spending

BACKOFF = (0.5, 30.0)
"""Shortest and longest wait before a repetition where the server names none, seconds."""
TEMPLATE = 32
"""Tokens that a server's chat template may add of itself."""
HOPELESS = 8
"""Requests refused as wrong, before any was answered, that show that all will be."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: where it goes and what it says."""

    path: str
    body: dict[str, Any]
    about: str = ""
    """What it is asked for: the same question about something else is another request."""
    written: int = 1
    """Most tokens that it may have written."""
    free: bool = False
    """It costs nothing, so that no budget holds it back and no record keeps it."""

    def most(self, options: ServerOptions) -> Amount:
        """What it may cost at most: a token is a byte at least, as each digit is to many models.

        Lists and objects are read, messages and a schema among them.
        """
        body = {k: v for k, v in self.body.items() if isinstance(v, list | dict)}
        prompt = body.pop("prompt", [])  # tokens already
        text = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
        read = len(prompt) + len(text) + TEMPLATE
        return Amount(1, read + self.written, options.cost(read, self.written))


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered, or `error`: why nothing of use."""

    body: dict[str, Any] | None = None
    error: str = ""
    read: int = 0
    """Tokens read."""
    written: int = 0
    """Tokens written."""
    cost_usd: float = 0.0


class Connection:
    """One model on one server; keeps its record, its budget and its pace over all requests.

    Requests run in a thread and event loop of their own, so `ask` may be called from anywhere.
    """

    def __init__(self, options: ServerOptions, folder: Path | None = None) -> None:
        """`folder` is where the record is kept, under a name that says what is asked of whom."""
        self._options = options
        self._key = options.key()
        identity = content_hash(options.model_dump(mode="json"))
        self._spending = Spending(folder / f"{identity}.jsonl" if folder else None)
        self._purse = Purse(options.budget, self._spending)
        self._pace = Pace(options.concurrency)
        self._seen: Counter[str] = Counter()
        self._stop: SelfkdError | None = None
        self._answered = -math.inf
        """When the last answer came, monotonic seconds."""
        self._refused = 0

    def ask(self, requests: Sequence[Request]) -> list[Response]:
        """Responses in order. StopJudging where no further request can succeed."""
        if self._stop is not None:
            raise StopJudging(self._stop)
        with waiting():
            asked = asyncio.run_coroutine_threadsafe(self._all(requests), self._loop)
            responses = asked.result()
        if self._stop is not None:
            raise StopJudging(self._stop)
        return responses

    async def _all(self, requests: Sequence[Request]) -> list[Response]:
        keys = [self._key_of(request) for request in requests]
        tasks = [self._one(r, key) for r, key in zip(requests, keys, strict=True)]
        return await asyncio.gather(*tasks)

    def _key_of(self, request: Request) -> str:
        """Name of a request in the record; asked the same again, it has another name."""
        key = content_hash([request.path, request.body, request.about])
        self._seen[key] += 1
        return f"{key}-{self._seen[key]}"

    async def _one(self, request: Request, key: str) -> Response:
        known = self._spending.known(key)
        if known is not None:
            return self._response(known)
        _ = self._client  # its import takes a second or two, which are not the server's
        give_up, attempt, last = float("inf"), 0, ""
        while self._stop is None:
            if time.monotonic() >= give_up:
                return self._given_up(last)
            async with self._pace as started:
                give_up = min(give_up, started + self._options.deadline)
                left = min(self._options.timeout, give_up - started)
                found = await self._try(request, key, left) if left > 0 else None
            if isinstance(found, Response):
                return found
            if found is None:
                continue
            if not (last and found.late and left < self._options.timeout):
                last = found.text  # a try cut short by the deadline says less than one before it
            if found.error:
                self._end(found.error)
            elif found.what == "item":
                return self._wrong(found)
            else:
                await self._before_again(found, started, attempt, give_up)
                attempt += 1
        return Response(error=last or "not asked: the judging was ended")

    def _end(self, error: SelfkdError) -> None:
        """Send nothing more: the first reason is told."""
        self._stop = self._stop or error
        self._pace.let_go()

    async def _try(self, request: Request, key: str, seconds: float) -> Response | Fault:
        """Send the request once, if there is money for it."""
        most = Amount() if request.free else request.most(self._options)
        while limit := self._purse.reserve(most):
            if self._stop is not None:
                return _ended(self._stop)
            if self._purse.idle:
                return Fault("stop", f"no {limit} left", error=self._out_of(limit, most))
            await asyncio.sleep(0.05)  # what is under way may cost less than it might
        try:
            if self._stop is not None:
                return _ended(self._stop)
            sent = self._client.post(request.path, cast_to=object, body=request.body)
            body = _answer(_without(await asyncio.wait_for(sent, seconds), self._key))
            response = self._response(body)
            other = _other_model(body, self._options)
            if not request.free:
                self._spending.add(key, None if other else body, _amount(response, most))
            self._pace.went_well()
            self._answered = time.monotonic()
            return other or response
        except Exception as error:
            return fault_of(error, self._options, self._key)
        finally:
            self._purse.release(most)

    def _response(self, body: dict[str, Any]) -> Response:
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        read, written = (_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion"))
        told = usage.get("cost")  # some vendors say it themselves
        cost = float(told) if isinstance(told, int | float) else self._options.cost(read, written)
        return Response(body, read=read, written=written, cost_usd=cost)

    # -- failures ---------------------------------------------------------------------------------

    async def _before_again(
        self, fault: Fault, started: float, attempt: int, give_up: float
    ) -> None:
        """Slow down if the server has too much to do, and wait as long as it asks."""
        pause = fault.wait or 0.0
        if started + pause > give_up:
            text = f"{self._options.server} asks for {pause:.0f} s of rest: {fault.text}"
            remedy = "resume then, or raise the judge's deadline"
            self._end(Stopped(text, where="judge", remedy=remedy))
            return
        if fault.overload:
            self._pace.overloaded(started, pause)
        shortest, longest = BACKOFF
        # Full jitter, or many would come again at the same moment.
        backoff = random.uniform(0, min(longest, shortest * 2**attempt))
        wake = time.monotonic() + min(pause + backoff, max(0.0, give_up - time.monotonic()))
        while self._stop is None and (left := wake - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.25))

    def _given_up(self, last: str) -> Response:
        """A request ran out of time; where nothing was answered meanwhile, the server is down."""
        options = self._options
        if time.monotonic() - self._answered > options.deadline:
            self._end(
                InfrastructureError(
                    f"{options.server} answered nothing for {options.deadline:g} s: {last}",
                    where="base_url",
                    remedy="resume when it is back, or raise the judge's deadline",
                )
            )
        return Response(error=f"no answer within {options.deadline:g} s: {last}")

    def _wrong(self, fault: Fault) -> Response:
        """A request that the server refuses as it is, such as one that is too long."""
        if not fault.text.startswith(REFUSAL):  # which says that requests are understood
            self._refused += self._answered == -math.inf
        if self._refused >= HOPELESS:
            remedy = "see the judge's options omit, extra and max_tokens_name"
            text = f"{self._options.server} refuses every request: {fault.text}"
            self._end(UsageError(text, where="judge", remedy=remedy))
        return Response(error=fault.text)

    def _out_of(self, limit: str, most: Amount) -> Stopped:
        return Stopped(
            f"the budget for {self._options.model} is used up ({self._purse.said(limit, most)})",
            where=f"budget.{limit}",
            remedy=f"raise the judge's budget.{limit} and resume: what was answered is kept",
        )

    # -- the client -------------------------------------------------------------------------------

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="served", daemon=True).start()
        return loop

    @cached_property
    def _client(self) -> Any:
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            base_url=self._options.base_url,
            api_key=self._key or "none",
            max_retries=0,  # repetitions are made here, within one deadline
            timeout=self._options.timeout,
        )


def _ended(error: SelfkdError) -> Fault:
    return Fault("stop", "the judging was ended", error=error)


def _without(body: Any, key: str) -> Any:
    """What a server said without the key, so that nobody meets it: record, verdicts, messages."""
    if len(key) < SHORTEST_KEY:
        return body
    text, told = json.dumps(body), json.dumps(key)[1:-1]
    return json.loads(text.replace(told, KEY)) if told in text else body


def _answer(body: Any) -> dict[str, Any]:
    """An answer that is a JSON object and no error; Refused otherwise."""
    if not isinstance(body, dict):
        raise Refused(Fault("again", f"an answer that is no JSON object: {str(body)[:100]!r}"))
    if body.get("error"):
        raise Refused(Fault("again", f"an error in the answer: {str(body['error'])[:200]}"))
    return body


_RELEASE = re.compile(r"-(\d{4}-\d\d-\d\d|\d\d-\d{4}|\d{3,8})$")
"""What vendors put behind a model's name: 2024-08-06, 08-2024, 20240806, 0613, 001. Other endings,
such as mini, are other models."""


def _other_model(body: dict[str, Any], options: ServerOptions) -> Fault | None:
    """What follows where another model answered than the one asked for.

    Its name, without its path or with a date or a release at the end, is the same model.
    """
    name, asked = str(body.get("model") or options.model), options.model
    plain = asked.rpartition("/")[2]
    if {name, _RELEASE.sub("", name)} & {asked, plain, options.answers_as} - {""}:
        return None
    text = f"asked for {asked}, {options.server} answers as {name}"
    remedy = f"set model: {name}, or answers_as: {name} if it is another name of the same"
    return Fault("stop", text, error=UsageError(text, where="model", remedy=remedy))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _amount(response: Response, most: Amount) -> Amount:
    """What an answer cost; where the server does not say, what it may have cost at most."""
    tokens = response.read + response.written
    return Amount(1, tokens, response.cost_usd) if tokens else replace(most, calls=1)
