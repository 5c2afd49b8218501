"""Answers a judge's calls from a model that its own process holds, with transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfkd.chat import load_tokenizer
from selfkd.enginecalls import EngineCalls
from selfkd.errors import DataError
from selfkd.judgecalls import Call, Choices, Likelihoods, Reply, waiting
from selfkd.models import check_model_dir, resolve_model
from selfkd.policies import Policy
from selfkd.sampling.base import Answer, Work


class LocalCalls:
    """A caller (`selfkd.judgecalls.Caller`) on a model that is not one of the run's policies."""

    structured = False

    def __init__(self, model: str) -> None:
        """Loads the model: a directory, a known name or a hub id.

        A model without a chat template reads messages one after the other, as plain text.
        """
        from selfkd.sampling.transformers import TransformersEngine

        path = resolve_model(model)
        check_model_dir(path)
        self.name = model
        self._engine = TransformersEngine(model, str(path))
        policy = Policy(model, path, "", [])
        sampler: Any = self
        self._calls = EngineCalls(
            sampler, policy, _tokenizer(path), self._engine.context, keep=False
        )

    def complete(self, calls: Sequence[Call]) -> list[Reply]:
        """Have answers written."""
        return self._answers(calls)

    def weigh(self, choices: Sequence[Choices]) -> list[Likelihoods]:
        """Have continuations scored."""
        return self._answers(choices)

    def _answers(self, requests: Sequence[Any]) -> Any:
        with waiting():
            return self._calls.answer(requests, lambda: None)

    def serve(
        self, policy: str, path: Path, canary: Any, work: Sequence[Work], check: Any
    ) -> list[dict[str, Answer]]:
        """Answers to each piece of work, as `SamplerPool.serve` gives them."""
        for piece in work:
            self._engine.add(piece)
        found: dict[str, Answer] = {}
        while self._engine.busy:
            found |= dict(self._engine.step())
        return [{request.id: found[request.id] for request in piece.requests} for piece in work]


def _tokenizer(path: Path) -> Any:
    try:
        return load_tokenizer(path)
    except DataError:
        return load_tokenizer(path, "plain")
