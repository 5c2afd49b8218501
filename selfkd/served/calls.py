"""Answers a judge's calls from a server: texts by chat, probabilities by the likeliest tokens."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfkd.judgecalls import REFUSAL, Call, Caller, Choices, Likelihoods, Reply
from selfkd.records import Finish
from selfkd.served.connection import Connection, Request, Response
from selfkd.served.options import ServerOptions
from selfkd.served.scoring import VllmScorer

TOP = 20
"""Likeliest tokens that servers tell of, at most."""
OPENING = 16
"""Tokens that an answer may take for the opening, where it cannot be given one."""


def server_calls(options: ServerOptions, folder: Path | None = None) -> Caller:
    """What answers a judge's calls on this server; `folder` keeps what it said."""
    return ServerCalls(options, Connection(options, folder))


class ServerCalls:
    """A caller (`selfkd.judgecalls.Caller`) on an OpenAI-compatible server."""

    def __init__(self, options: ServerOptions, connection: Connection) -> None:
        self.name = f"{options.model} on {options.server}"
        self.structured = options.structured
        self._options = options
        self._connection = connection
        self._scorer = VllmScorer(options, connection) if options.api == "vllm" else None

    # -- text -------------------------------------------------------------------------------------

    def complete(self, calls: Sequence[Call]) -> list[Reply]:
        """Have answers written; a server that writes one at a time is asked again for the rest."""
        found = [Reply() for _ in calls]
        owed = list(range(len(calls)))
        while owed:
            asked = [self._request(calls[i], calls[i].n - len(found[i].texts)) for i in owed]
            for i, response in zip(owed, self._connection.ask(asked), strict=True):
                found[i] = _joined(found[i], response, calls[i].n)
            owed = [i for i in owed if not found[i].error and len(found[i].texts) < calls[i].n]
        return found

    def _request(self, call: Call, n: int) -> Request:
        sampling, options = call.sampling, self._options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": list(call.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            options.max_tokens_name: sampling.max_tokens,
        }
        body |= {"n": n} if n > 1 else {}
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        body |= {"top_k": sampling.top_k} if sampling.top_k and options.api == "vllm" else {}
        if call.schema is not None and options.structured:
            schema = {"name": "verdict", "schema": dict(call.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return self._chat(body, call.about, n * sampling.max_tokens)

    def _chat(self, body: dict[str, Any], about: str, written: int) -> Request:
        kept = {k: v for k, v in body.items() if k not in self._options.omit}
        return Request("/chat/completions", {**kept, **self._options.extra}, about, written)

    # -- log-probabilities ------------------------------------------------------------------------

    def weigh(self, choices: Sequence[Choices]) -> list[Likelihoods]:
        """Have continuations scored: exactly by vLLM, elsewhere by their first tokens."""
        if self._scorer:
            return self._scorer.weigh(choices)
        responses = self._connection.ask([self._weighing(c) for c in choices])
        return [_likelihoods(c, r) for c, r in zip(choices, responses, strict=True)]

    def _weighing(self, choices: Choices) -> Request:
        written = 1 + (OPENING if choices.opening.strip() else 0)
        body = {
            "model": self._options.model,
            "messages": list(choices.messages),
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": TOP,
            self._options.max_tokens_name: written,
        }
        return self._chat(body, choices.about, written)


def _joined(reply: Reply, response: Response, n: int) -> Reply:
    """A reply with what another response added."""
    texts, finishes, error = list(reply.texts), list(reply.finishes), response.error
    said = (response.body or {}).get("choices")
    if not error and not (isinstance(said, list) and said):
        error = "an answer without choices"
    for choice in said if isinstance(said, list) and not error else ():
        text, finish, error = _text(choice)
        if error:
            break
        texts.append(text)
        finishes.append(finish)
    return Reply(
        () if error else tuple(texts[:n]),
        () if error else tuple(finishes[:n]),
        error,
        reply.prompt_tokens + response.read,
        reply.tokens + response.written,
        reply.cost_usd + response.cost_usd,
    )


def _text(choice: Any) -> tuple[str, Finish, str]:
    """Text and finish of a choice, or why it has none."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return "", "error", "an answer without a message"
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return "", "error", f"{REFUSAL}{str(message.get('refusal') or 'content filter')[:200]}"
    content = message.get("content")
    if not isinstance(content, str):
        return "", "error", "an answer without text"
    return content, "length" if choice.get("finish_reason") == "length" else "stop", ""


def _likelihoods(choices: Choices, response: Response) -> Likelihoods:
    """Log-probabilities by the first token of each choice, of those that the server tells of."""
    cost = {"prompt_tokens": response.read, "cost_usd": response.cost_usd}
    if response.error:
        return Likelihoods(error=response.error, **cost)
    try:
        places = (response.body or {})["choices"][0]["logprobs"]["content"]
        told = _after(places, choices.opening)
    except (KeyError, IndexError, TypeError):
        return Likelihoods(error="the server tells no log-probabilities", **cost)
    if told is None:
        return Likelihoods(error=f"the answer does not begin with {choices.opening!r}", **cost)
    shares = [0.0] * len(choices.choices)
    for token, logprob in told:
        for i in _meant(token, choices.choices):
            shares[i] += math.exp(logprob)
    return Likelihoods(tuple(math.log(p) if p else None for p in shares), **cost)


def _after(places: Any, opening: str) -> list[tuple[str, float]] | None:
    """The likeliest tokens at the place where an answer goes on after its opening."""
    written = ""
    for place in places:
        if written.strip() == opening.strip():
            return [(str(t["token"]), float(t["logprob"])) for t in place["top_logprobs"]]
        written += str(place["token"])
    return None


def _meant(token: str, choices: Sequence[str]) -> list[int]:
    """The one choice that a token begins or is; none where it could be several or is no text."""
    text = token.strip()
    exact = [i for i, choice in enumerate(choices) if choice.strip() == text]
    begun = [i for i, choice in enumerate(choices) if text and choice.strip().startswith(text)]
    found = exact or begun
    return found if len(found) == 1 else []
