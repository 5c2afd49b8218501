"""An OpenAI-compatible server that behaves as badly as a test wants, on a port of this machine."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Behaviour = Callable[["Asked"], Any]
"""Of a request a response, a text to answer with, or None for the usual answer."""


@dataclass
class Asked:
    """One request, and the how-manieth of this server and of its question it is (from 1)."""

    path: str
    body: dict[str, Any]
    number: int
    attempt: int
    headers: dict[str, str]

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])

    @property
    def key(self) -> str:
        """The key that it came with."""
        return self.headers["authorization"].removeprefix("Bearer ")


@dataclass
class Server:
    """What the server is to do, and what it saw."""

    behave: Behaviour = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    port: int = 0
    delay: float = 0.0

    @property
    def url(self) -> str:
        """What `base_url` is set to."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def answer(self, request: Request) -> Response:
        """Serve a request, by default as a chat completion."""
        body = await request.json()
        key = json.dumps(body, sort_keys=True)
        attempts = Counter(json.dumps(a.body, sort_keys=True) for a in self.asked)
        asked = Asked(
            request.url.path, body, len(self.asked) + 1, attempts[key] + 1, dict(request.headers)
        )
        self.asked.append(asked)
        self.times.append(time.monotonic())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay)
            found = self.behave(asked)
            if asyncio.iscoroutine(found):
                found = await found
        finally:
            self.running -= 1
        return found if isinstance(found, Response) else said(found or "Score: 4", body)


def said(text: Any, body: dict[str, Any], **changes: Any) -> Response:
    """A usual answer: as many choices as were asked for, 10 tokens read and 5 written for each."""
    n = body.get("n", 1)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{**choice, "index": i} for i in range(n)],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5 * n, "total_tokens": 10 + 5 * n},
    }
    return JSONResponse(answer | changes)


def failed(status: int, message: str = "no", code: str = "", **headers: str) -> Response:
    """An error in the form that OpenAI gives it."""
    error = {"message": message, "type": code or "error", "code": code or None}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": error}, status, headers=names)


class Host:
    """A port of this machine, where one server after the other answers."""

    def __init__(self) -> None:
        self.port = 0
        self.server = Server()

    def fresh(self) -> Server:
        """A new server, which has seen nothing."""
        self.server = Server(port=self.port)
        return self.server

    async def answer(self, request: Request) -> Response:
        """Serve a chat completion by the server of the moment."""
        return await self.server.answer(request)


@contextlib.contextmanager
def hosting() -> Iterator[Host]:
    """Listen in a thread of this process."""
    host = Host()
    routes = [Route("/{path:path}", host.answer, methods=["POST"])]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical", lifespan="off"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    host.port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        running.should_exit = True
        running.force_exit = True
        thread.join(timeout=10)
