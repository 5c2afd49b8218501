"""Answers judges' calls from the run's own sampler: same weights, same batch as generation."""

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selfkd.chat import render, shared_length, tokens_of
from selfkd.cluster import Check
from selfkd.judgecalls import Call, Choices, Likelihoods, Reply
from selfkd.policies import Policy
from selfkd.sampling.base import Answer, Completion, Request, Sampling, Weighing, Work
from selfkd.sampling.replicas import Sampler

Told = tuple[Call, list[Completion]]
"""A call, and what was written in answer to it."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Calls that are drawn alike: they are one piece of work."""

    sampling: Sampling
    schema: str | None


class EngineCalls:
    """Answers the calls of one judge under one policy; may be used from several threads."""

    def __init__(
        self, sampler: Sampler, policy: Policy, tokenizer: Any, context: int, *, keep: bool
    ) -> None:
        """`context` in tokens; `keep` what is told, for `told` to hand out."""
        self._sampler = sampler
        self.policy = policy
        self._tokenizer = tokenizer
        self._context = context
        self._keep = keep
        self._told: dict[str, list[Told]] = {}
        self._lock = threading.Lock()

    def structured(self) -> bool:
        """Whether the engine holds completions to a schema."""
        return self._sampler.structured(self.policy.name, self.policy.path, self.policy.canary)

    def answer(
        self, requests: Sequence[Call] | Sequence[Choices], check: Check
    ) -> list[Reply] | list[Likelihoods]:
        """Answers in order. InfrastructureError where the sampler is lost for good."""
        calls = [r for r in requests if isinstance(r, Call)]
        if calls:
            return self._complete(calls, check)
        return self._weigh([r for r in requests if isinstance(r, Choices)], check)

    def told(self, ids: Iterable[str]) -> list[Told]:
        """What was told about these samples, once: it is forgotten then."""
        with self._lock:
            return [told for id in ids for told in self._told.pop(id, [])]

    # -- text -------------------------------------------------------------------------------------

    def _complete(self, calls: Sequence[Call], check: Check) -> list[Reply]:
        groups: dict[_Group, list[Request]] = {}
        sizes: list[int] = []
        for index, call in enumerate(calls):
            tokens = tuple(render(self._tokenizer, call.messages))
            sizes.append(len(tokens))
            if len(tokens) + call.sampling.max_tokens <= self._context:
                # In the order it is written: the reason comes before the verdict.
                schema = None if call.schema is None else json.dumps(call.schema)
                wanted = groups.setdefault(_Group(call.sampling, schema), [])
                wanted.append(Request(str(index), tokens, call.n))
        work = [Work(tuple(r), g.sampling, g.schema, urgent=True) for g, r in groups.items()]
        answers = self._serve(work, check)
        return [self._reply(call, answers.get(str(i)), sizes[i]) for i, call in enumerate(calls)]

    def _reply(self, call: Call, answer: Any, size: int) -> Reply:
        if answer is None:
            return Reply(error=self._too_long(size, call.sampling.max_tokens), prompt_tokens=size)
        completions: list[Completion] = answer
        if self._keep:
            with self._lock:
                self._told.setdefault(call.about, []).append((call, completions))
        return Reply(
            texts=tuple(c.text for c in completions),
            finishes=tuple(c.finish for c in completions),
            prompt_tokens=size,
            tokens=sum(len(c.tokens) for c in completions),
        )

    # -- log-probabilities ------------------------------------------------------------------------

    def _weigh(self, requests: Sequence[Choices], check: Check) -> list[Likelihoods]:
        weighings = [self._weighing(str(i), r) for i, r in enumerate(requests)]
        answers = self._serve([Work(tuple(weighings), urgent=True)], check)
        return [self._likelihoods(w, answers[w.id]) for w in weighings]

    def _weighing(self, id: str, request: Choices) -> Weighing:
        start = tuple(render(self._tokenizer, request.messages))
        texts = [self._tokens(request.opening + choice) for choice in request.choices]
        # Of several, what they all begin with belongs to the prompt; of one, the opening does.
        others = texts if len(texts) > 1 else [*texts, self._tokens(request.opening)]
        shared = min(shared_length(others), min(map(len, texts)) - 1)
        rest = tuple(tokens[shared:] for tokens in texts)
        return Weighing(id, (*start, *texts[0][:shared]), rest)

    def _likelihoods(self, weighing: Weighing, answer: Answer) -> Likelihoods:
        size = len(weighing.prompt_tokens)
        if not answer:
            return Likelihoods(error=self._too_long(size, 1), prompt_tokens=size)
        lengths = tuple(map(len, weighing.continuations))
        values: Any = answer
        return Likelihoods(logprobs=tuple(values), lengths=lengths, prompt_tokens=size)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(tokens_of(self._tokenizer, text))

    # -- both -------------------------------------------------------------------------------------

    def _serve(self, work: Sequence[Work], check: Check) -> dict[str, Answer]:
        work = [piece for piece in work if piece.requests]
        if not work:
            return {}
        policy = self.policy
        found = self._sampler.serve(policy.name, policy.path, policy.canary, work, check)
        return {id: answer for answers in found for id, answer in answers.items()}

    def _too_long(self, size: int, answer: int) -> str:
        return (
            f"a prompt of {size} tokens and an answer of {answer} do not fit engine.max_model_len "
            f"({self._context}): lower the judge's response_limit or max_tokens, or raise it"
        )
