"""transformers behind the engine protocol: the fallback where vLLM is absent, and for tests."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from selfkd.errors import DataError
from selfkd.hardware import compute_dtype, cores
from selfkd.sampling.base import REFUSED, Answer, Completion, Request, Sampling, Weighing, Work
from selfkd.sampling.weights import check_weights, stored_tensors

URGENT = 10**9
"""Urgent work is numbered from here, so that its draws are not those of other work."""


class TransformersEngine:
    """One model that completes batches of prompts with `generate`.

    A batch holds requests of one piece of work, short prompts first. What is drawn is a function of
    the seed, the number of the work (what is urgent is counted apart) and its requests.
    """

    structured = False

    def __init__(
        self,
        policy: str,
        path: str,
        *,
        dtype: str = "auto",
        max_num_seqs: int = 256,
        seed: int = 0,
    ) -> None:
        torch.set_num_threads(cores())
        self.policy = policy
        self._tensors = stored_tensors(path)
        self._max_num_seqs = max_num_seqs
        self._seed = seed
        self._taken: Counter[bool] = Counter()
        self._batches: dict[bool, list[_Batch]] = {True: [], False: []}
        self._refused: list[tuple[str, Answer]] = []
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._dtype = getattr(torch, compute_dtype(dtype))
        self._model = self._read(path)
        self.context = getattr(self._model.config, "max_position_embeddings", None) or 2**31
        self._ends = _end_tokens(self._model.generation_config, self._tokenizer)
        # Its other defaults, such as a repetition penalty, would change what is drawn.
        self._model.generation_config = GenerationConfig()
        pad = self._tokenizer.pad_token_id
        self._pad: int = min(self._ends, default=0) if pad is None else pad

    @property
    def busy(self) -> bool:
        """Whether a batch or a refusal is left."""
        return bool(self._refused or self._batches[True] or self._batches[False])

    def add(self, work: Work) -> None:
        """Line up batches of the work; see `Engine.add`."""
        self._taken[work.urgent] += 1
        number = self._taken[work.urgent] + (URGENT if work.urgent else 0)
        draws = _Draws(self._seed * 1_000_003 + number)
        ranked: Any = sorted(work.requests, key=lambda r: len(r.prompt_tokens))
        fits = [r for r in ranked if _length(r) < self.context]
        size = max(1, self._max_num_seqs // max((getattr(r, "n", 1) for r in fits), default=1))
        for i in range(0, len(fits), size):
            batch = _Batch(fits[i : i + size], work.sampling, draws)
            self._batches[work.urgent].append(batch)
        self._refused += [(r.id, _refusal(r)) for r in ranked[len(fits) :]]

    def step(self) -> list[tuple[str, Answer]]:
        """Answer one batch, an urgent one if there is any."""
        refused, self._refused = self._refused, []
        line = self._batches[True] or self._batches[False]
        if not line:
            return refused
        batch = line.pop(0)
        if batch.sampling is None:
            return [*refused, *((r.id, self._weigh(r)) for r in batch.requests)]
        with batch.draws.going_on():
            return [*refused, *self._complete(batch.requests, batch.sampling)]

    def drop(self, ids: Iterable[str]) -> None:
        """Forget requests that wait for a batch."""
        gone = set(ids)
        for urgent, line in self._batches.items():
            for batch in line:
                batch.requests = [r for r in batch.requests if r.id not in gone]
            self._batches[urgent] = [batch for batch in line if batch.requests]

    @torch.no_grad()
    def _complete(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[str, list[Completion]]]:
        rows = [r.prompt_tokens for r in requests for _ in range(r.n)]
        longest = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (longest - len(r)) + list(r) for r in rows])
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
        output = self._model.generate(
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=self._drawing(sampling),
            tokenizer=self._tokenizer if sampling.stop else None,
            logits_processor=LogitsProcessorList([_RefuseNaN(self.policy)]),
        )
        texts = iter(output[:, longest:].tolist())
        for request in requests:
            yield request.id, [self._completion(next(texts), sampling) for _ in range(request.n)]

    def _drawing(self, sampling: Sampling) -> GenerationConfig:
        greedy = sampling.temperature == 0
        return GenerationConfig(
            do_sample=not greedy,
            temperature=None if greedy else sampling.temperature,
            top_p=None if greedy else sampling.top_p,
            top_k=None if greedy else sampling.top_k,
            max_new_tokens=sampling.max_tokens,
            stop_strings=list(sampling.stop) or None,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self._pad,
        )

    def _completion(self, tokens: list[int], sampling: Sampling) -> Completion:
        """A row of `generate` without what was padded after its end."""
        end = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        text = self._text(tokens[:end])
        stops = [text.find(stop) for stop in sampling.stop if stop in text]
        if stops:
            # A row that met a stop string is padded, maybe with the end token: look here first.
            return Completion(text[: min(stops)], self._until(tokens[:end], sampling.stop), "stop")
        ended = end < len(tokens)
        return Completion(text, tuple(tokens[: end + 1]), "stop" if ended else "length")

    def _until(self, tokens: list[int], stop: Sequence[str]) -> tuple[int, ...]:
        """The shortest head of `tokens` whose text holds a stop string."""
        heads = (tuple(tokens[:count]) for count in range(1, len(tokens)))
        held = (head for head in heads if any(s in self._text(head) for s in stop))
        return next(held, tuple(tokens))

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def load(self, policy: str, path: str) -> None:
        """Take the weights in `path`; refuses files that do not fit before it changes any."""
        check_weights(path, self._tensors)
        self._model = self._read(path)
        self._model.generation_config = GenerationConfig()
        self.policy = policy

    def sleep(self) -> bool:
        """Not possible: freed memory would stay with the process."""
        return False

    @torch.no_grad()
    def _weigh(self, request: Weighing) -> list[float]:
        """Log-probabilities of the continuations; those that share a row cost one forward."""
        found = [0.0] * len(request.continuations)
        for row, indices in request.rows().items():
            kept = len(row) - len(request.prompt_tokens) + 1
            ids = torch.tensor([row], device=self._model.device)
            logits = self._model(ids, logits_to_keep=kept).logits[0].float()
            log_probs = logits.log_softmax(-1)
            for index in indices:
                wanted = torch.tensor(request.continuations[index], device=logits.device)
                found[index] = log_probs.gather(1, wanted[:, None]).sum().item()
        return found

    def _read(self, path: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=self._dtype, use_safetensors=True)
        model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        return model.eval()

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it; 0.0 for the first."""
        return [self._logprobs(list(sequence)) for sequence in sequences]

    def last_logprobs(self, sequence: Sequence[int], count: int) -> list[float]:
        """The end of `logprobs`: nothing is cached here."""
        return self.logprobs([sequence])[0][-count:]

    def _logprobs(self, tokens: list[int]) -> list[float]:
        ids = torch.tensor([tokens], device=self._model.device)
        log_probs = self._model(ids).logits[0, :-1].float().log_softmax(-1)
        return [0.0, *log_probs.gather(1, ids[0, 1:, None]).squeeze(1).tolist()]


class _Batch:
    """Requests that are answered together, and what seeds their draws."""

    def __init__(self, requests: list[Any], sampling: Sampling | None, draws: "_Draws") -> None:
        self.requests = requests
        self.sampling = sampling
        self.draws = draws


class _Draws:
    """The random numbers of one piece of work, whatever is worked on between its batches."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: list[torch.Tensor] = []

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Draw where the last batch of the work left off."""
        if not self._states:
            torch.manual_seed(self._seed)
        else:
            torch.set_rng_state(self._states[0])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(self._states[1])
        yield
        self._states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            self._states.append(torch.cuda.get_rng_state())


def _length(request: Request | Weighing) -> int:
    """Tokens that must fit the context besides one more."""
    after = max(map(len, getattr(request, "continuations", ((),))))
    return len(request.prompt_tokens) + max(0, after - 1)


def _refusal(request: Request | Weighing) -> Answer:
    return [REFUSED] * request.n if isinstance(request, Request) else []


class _RefuseNaN(LogitsProcessor):
    """Stops a generation that would go on from logits that are not numbers."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if torch.isnan(scores).any():
            raise DataError(
                f"{self._policy} gives logits that are not a number",
                where="engine",
                remedy="its weights are broken: roll back to an earlier policy",
            )
        return scores


def _end_tokens(generation_config: GenerationConfig, tokenizer: Any) -> set[int]:
    ends = generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {t for t in (*listed, tokenizer.eos_token_id) if t is not None}
