"""What can be said about a server, and what it may cost."""

import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from selfkd.errors import UsageError
from selfkd.hardware import installed
from selfkd.judging import JudgeOptions
from selfkd.options import Options

NAME = r"^$|^[A-Za-z_][A-Za-z0-9_]*$"


class Budget(Options):
    """What a run may spend on one server in all; when it is used up the run stops, resumably."""

    usd: float | None = Field(None, gt=0)
    """US dollars, by the prices that are given."""
    tokens: int | None = Field(None, ge=1)
    """Tokens read and written."""
    calls: int | None = Field(None, ge=1)
    """Requests that were answered."""


class ServerOptions(JudgeOptions):
    """A model on an OpenAI-compatible server.

    What says how it is reached and paid is no part of a judge's identity: it may change on resume.
    """

    model: str = Field(min_length=1)
    """The model's name on the server."""
    base_url: str = Field("https://api.openai.com/v1", exclude=True)
    """Address of the server, up to and including /v1."""
    api_key_env: str = Field("", pattern=NAME, exclude=True)
    """Name of the environment variable with the key, such as OPENAI_API_KEY; none: no key."""
    api: Literal["openai", "vllm"] = "openai"
    """vllm: the server is vLLM's, which tells log-probabilities of any text; elsewhere they are
    those of the first token, of the 20 likeliest."""
    structured: bool = False
    """Hold answers to the judge's JSON schema (response_format); most servers can."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the longest answer."""
    omit: tuple[str, ...] = ()
    """Parameters that the server does not take, such as temperature or top_p."""
    extra: Mapping[str, Any] = Field(default_factory=dict)
    """More parameters of each request, such as {reasoning_effort: low}."""
    answers_as: str = ""
    """Another name that the server may give for the model in its answers."""
    budget: Budget = Field(default_factory=lambda: Budget.model_validate({}), exclude=True)
    """Limits on usd, tokens and calls."""
    usd_per_million_input: float | None = Field(None, ge=0, exclude=True)
    """Price of the tokens that are read."""
    usd_per_million_output: float | None = Field(None, ge=0, exclude=True)
    """Price of the tokens that are written."""
    concurrency: int = Field(32, ge=1, exclude=True)
    """Most requests at once, of one judge process; fewer while the server cannot keep up."""
    timeout: float = Field(120.0, gt=0, exclude=True)
    """Longest wait for one answer, seconds."""
    deadline: float = Field(600.0, gt=0, exclude=True)
    """Longest time for one request with all its repetitions, seconds."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("should be an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("should hold no key: name its environment variable by api_key_env")
        return value

    @model_validator(mode="after")
    def _priced(self) -> "ServerOptions":
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        if self.budget.usd is not None and None in prices:
            raise ValueError(
                "budget.usd needs the prices: usd_per_million_input and usd_per_million_output"
            )
        return self

    @property
    def server(self) -> str:
        """Name of the server for messages."""
        return urlsplit(self.base_url).netloc

    def key(self) -> str:
        """The key; UsageError, which never shows it, where the variable is not set."""
        if not self.api_key_env:
            return ""
        value = os.environ.get(self.api_key_env, "").strip()
        if not value:
            raise UsageError(
                f"the environment variable {self.api_key_env} is not set",
                where="api_key_env",
                remedy=f"export {self.api_key_env}=... with the key of {self.server}",
            )
        return value

    def cost(self, read: int, written: int) -> float:
        """US dollars for so many tokens; 0 where no prices are given."""
        into, out = self.usd_per_million_input or 0.0, self.usd_per_million_output or 0.0
        return (read * into + written * out) / 1e6


def check_server(options: ServerOptions) -> None:
    """UsageError where no request can be made; what `@judge(ready=...)` takes. Asks no server."""
    if not installed("openai"):
        raise UsageError(
            "the openai client is not installed", remedy="pip install 'selfkd[teacher]'"
        )
    options.key()


KEY = "[key]"
"""What stands where a key stood."""
SHORTEST_KEY = 8
"""A shorter one, such as EMPTY, is no secret, and may be any word of an answer."""
_SECRET = re.compile(r"\b(sk-|hf_|gsk_|xai-|AIza|Bearer\s+)[A-Za-z0-9_\-.]{6,}")


def redacted(text: str, key: str) -> str:
    """`text` without the key, whole or in part, and without what looks like one."""
    if key:
        text = text.replace(key, KEY)
    return _SECRET.sub(KEY, text)
