"""Log-probabilities of given texts and tokens by vLLM's server, which reads prompts token by token.

Elsewhere only what a model writes itself can be scored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfkd.chat import shared_length
from selfkd.errors import InfrastructureError
from selfkd.judgecalls import Choices, Likelihoods, StopJudging
from selfkd.served.connection import Connection, Request, Response
from selfkd.served.options import ServerOptions
from selfkd.teaching import Lesson

Place = Mapping[int, float]
"""Token ids and their log-probabilities at one place of a text."""


class VllmScorer:
    """Scores texts and tokens on a vLLM server."""

    def __init__(self, options: ServerOptions, connection: Connection) -> None:
        self._options = options
        self._connection = connection
        self._texts: dict[str, list[int]] = {}

    def weigh(self, choices: Sequence[Choices]) -> list[Likelihoods]:
        """Exact log-probability of each choice: one reading of the prompt for each."""
        starts = self._starts(choices)
        self._tokenize({c.opening + text for c in choices for text in (*c.choices, "")})
        asked: list[tuple[int, int, list[int]]] = []  # of which choices, tokens that count, all
        for i, choice in enumerate(choices):
            start = starts[i]
            if isinstance(start, list):
                texts = [self._texts[choice.opening + text] for text in choice.choices]
                # Of several, what they all begin with is given as well; of one, the opening is.
                others = texts if len(texts) > 1 else [*texts, self._texts[choice.opening]]
                given = min(shared_length(others), min(map(len, texts)) - 1)
                asked += [(i, len(tokens) - given, start + tokens) for tokens in texts]
        responses = self._connection.ask(
            [self._reading(tokens, 0, choices[i].about) for i, _, tokens in asked]
        )
        found: list[list[tuple[int, Response, list[int]]]] = [[] for _ in choices]
        for (i, count, tokens), response in zip(asked, responses, strict=True):
            found[i].append((count, response, tokens))
        return [
            _likelihoods(rows) if isinstance(start, list) else Likelihoods(error=start)
            for rows, start in zip(found, starts, strict=True)
        ]

    def likeliest(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], top_k: int
    ) -> list[list[Place]]:
        """For each (prompt tokens, completion tokens) the `top_k` likeliest at each token of the
        completion, given all before it, at temperature 1.

        InfrastructureError, or what stops judging, where one cannot be had.
        """
        asked = [self._reading([*start, *rest], top_k, "") for start, rest in sequences]
        found: list[list[Place]] = []
        for (start, _), response in zip(sequences, self._connection.ask(asked), strict=True):
            places = _places(response)
            if isinstance(places, str):
                raise InfrastructureError(places, where=self._options.base_url)
            ranked = [_ranked(place, top_k) for place in places[len(start) :]]
            found.append(ranked)
        return found

    def _starts(self, choices: Sequence[Choices]) -> list[list[int] | str]:
        """Tokens of each conversation up to the answer, or why there are none."""
        body = {"model": self._options.model, "add_generation_prompt": True}
        asked = [self._tokens({**body, "messages": list(c.messages)}) for c in choices]
        return [
            r.error or list((r.body or {}).get("tokens", [])) for r in self._connection.ask(asked)
        ]

    def _tokenize(self, texts: set[str]) -> None:
        """Learn the tokens of texts that stand alone."""
        owed = sorted(texts - self._texts.keys() - {""})
        body = {"model": self._options.model, "add_special_tokens": False}
        asked = [self._tokens({**body, "prompt": text}) for text in owed]
        for text, response in zip(owed, self._connection.ask(asked), strict=True):
            if response.error:
                error = InfrastructureError(response.error, where=self._options.base_url)
                raise StopJudging(error)
            self._texts[text] = list((response.body or {})["tokens"])
        self._texts[""] = []

    def _tokens(self, body: dict[str, Any]) -> Request:
        """A question to the tokenizer, which vLLM has beside /v1."""
        root = self._options.base_url.rstrip("/").removesuffix("/v1")
        return Request(f"{root}/tokenize", body, free=True)

    def _reading(self, tokens: Sequence[int], top: int, about: str) -> Request:
        body = {
            "model": self._options.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top,
        }
        return Request("/completions", {**body, **self._options.extra}, about, 1)


def _places(response: Response) -> list[Any] | str:
    """What a server says of each token of a prompt, or why nothing."""
    if response.error:
        return response.error
    try:
        places = (response.body or {})["choices"][0]["prompt_logprobs"]
    except (KeyError, IndexError, TypeError):
        places = None
    return (
        places if isinstance(places, list) else "the server tells no prompt_logprobs: is it vLLM?"
    )


def _ranked(place: Mapping[str, Any], top_k: int) -> Place:
    """The likeliest tokens; vLLM adds the token that is there, likely or not."""
    told = {int(token): float(entry["logprob"]) for token, entry in place.items()}
    return dict(sorted(told.items(), key=lambda pair: -pair[1])[:top_k])


def _likelihoods(rows: Sequence[tuple[int, Response, list[int]]]) -> Likelihoods:
    logprobs: list[float] = []
    for count, response, tokens in rows:
        places = _places(response)
        if isinstance(places, str):
            return Likelihoods(error=places)
        ends = zip(places[-count:], tokens[-count:], strict=True)
        logprobs.append(sum(float(place[str(token)]["logprob"]) for place, token in ends))
    return Likelihoods(
        tuple(logprobs),
        tuple(count for count, _, _ in rows),
        prompt_tokens=sum(r.read for _, r, _ in rows),
        cost_usd=sum(r.cost_usd for _, r, _ in rows),
    )


class VllmTeacher:
    """A served teacher (`selfkd.teaching.ServedTeacher`) on vLLM's server, for `round.teach`.

    It must have the policy's tokenizer. vLLM tells of 20 tokens at most unless its server was
    started with a larger `--max-logprobs`.
    """

    def __init__(self, options: ServerOptions, top_k: int = 20, folder: Path | None = None) -> None:
        self.name = f"{options.model} by vLLM"
        self.top_k = top_k
        self._scorer = VllmScorer(options, Connection(options, folder))

    def likeliest(self, lessons: Sequence[Lesson]) -> list[list[Place]]:
        """For each lesson one mapping a completion token, of `top_k` tokens."""
        asked = [(lesson.prompt_tokens, lesson.completion_tokens) for lesson in lessons]
        try:
            return self._scorer.likeliest(asked, self.top_k)
        except StopJudging as stop:
            raise stop.error from stop
