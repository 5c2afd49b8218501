"""What it means when a server does not answer as asked: try again, give up this one, or stop."""

import email.utils
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from selfkd.errors import SelfkdError, Stopped, UsageError
from selfkd.judgecalls import REFUSAL
from selfkd.served.options import ServerOptions, redacted

What = Literal["again", "item", "stop"]

FILTERED = ("content_filter", "content_policy_violation", "data_inspection_failed")
"""Codes of errors by which vendors say that a filter would not let a text through."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request has no answer, and what follows."""

    what: What
    text: str
    overload: bool = False
    """The server has too much to do."""
    late: bool = False
    """There was no answer in the time it had."""
    wait: float | None = None
    """Seconds that the server asks for."""
    error: SelfkdError | None = None
    """What ends all requests."""


class Refused(Exception):
    """An answer that came, and is none; `fault` says what follows."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def fault_of(error: Exception, options: ServerOptions, key: str) -> Fault:
    """What an error of the client, or of reading an answer, means; re-raises what is neither."""
    import openai

    if isinstance(error, Refused):
        return replace(error.fault, text=redacted(error.fault.text, key))
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Fault("again", "no answer in time", overload=True, late=True)
    if isinstance(error, openai.APIStatusError):
        return _status(error, options, _message(error, key))
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        text = redacted(str(cause) or type(cause).__name__, key)
        return Fault("again", f"no connection: {text.splitlines()[0]}", overload=True)
    if isinstance(error, openai.APIError | ValueError):
        return Fault("again", f"an answer that is no JSON: {redacted(str(error), key)[:200]}")
    raise error


def _status(error: Any, options: ServerOptions, text: str) -> Fault:
    status, said = error.status_code, f"HTTP {error.status_code}: {text}"
    if status == 402 or "insufficient_quota" in (error.code, error.type):
        remedy = "pay the account up, then resume"
        stopped = Stopped(f"{options.server} wants money: {text}", where="judge", remedy=remedy)
        return Fault("stop", said, error=stopped)
    if error.code in FILTERED or error.type in FILTERED:
        return Fault("item", f"{REFUSAL}{text}")
    if status in (401, 403):
        return Fault("stop", said, error=_no_access(status, options, text))
    if status in (404, 405):
        return Fault("stop", said, error=_no_model(options, text))
    if status in (408, 409, 425, 429) or status >= 500:
        return Fault(
            "again", said, overload=status != 409, wait=retry_after(error.response.headers)
        )
    return Fault("item", said)


def _no_access(status: int, options: ServerOptions, text: str) -> UsageError:
    name = options.api_key_env
    remedy = f"check the key in {name}" if name else "name the variable of a key by api_key_env"
    message = f"{options.server} refuses access (HTTP {status}): {text}"
    return UsageError(message, where="api_key_env", remedy=remedy)


def _no_model(options: ServerOptions, text: str) -> UsageError:
    remedy = f"see what it has: GET {options.base_url.rstrip('/')}/models (base_url ends in /v1)"
    if options.api == "vllm":
        remedy += "; if it is not vLLM's server, leave out api: vllm"
    return UsageError(
        f"{options.server} has no model {options.model!r}, or base_url is wrong: {text}",
        where="model",
        remedy=remedy,
    )


def _message(error: Any, key: str) -> str:
    """What the server says, in one line, without the key."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    text = redacted(str(said or body or error.message), key).strip()  # before half a key is left
    return (text.splitlines() or ["no reason given"])[0][:300]


def retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `retry-after` as seconds or date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            if parsed:
                return max(0.0, email.utils.mktime_tz(parsed) - time.time())
    return None
