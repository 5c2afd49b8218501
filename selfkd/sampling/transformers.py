"""transformers behind the engine protocol: the fallback where vLLM is absent, and for tests."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from selfkd.errors import DataError, InfrastructureError
from selfkd.hardware import compute_dtype, cores
from selfkd.records import Finish
from selfkd.sampling.base import Completion, Request, Sampling


class TransformersEngine:
    """One model that completes batches of prompts with `generate`."""

    def __init__(
        self,
        policy: str,
        path: str,
        *,
        dtype: str = "auto",
        max_num_seqs: int = 256,
        seed: int = 0,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(cores())
        self.policy = policy
        self._max_num_seqs = max_num_seqs
        self._seed = seed
        self._calls = 0
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._dtype = getattr(torch, compute_dtype(dtype))
        model = AutoModelForCausalLM.from_pretrained(path, dtype=self._dtype, use_safetensors=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(device).eval()  # type: ignore[arg-type]
        self._pad = self._tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self._tokenizer.eos_token_id
        self._ends = _end_tokens(self._model.generation_config, self._tokenizer)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[str, list[Completion]]]:
        """Yield requests batch by batch, short prompts first; see `Engine.generate`.

        The result is a function of the seed, the number of the call and the requests.
        """
        self._calls += 1
        torch.manual_seed(self._seed * 1_000_003 + self._calls)
        size = max(1, self._max_num_seqs // max((r.n for r in requests), default=1))
        ranked = sorted(requests, key=lambda r: len(r.prompt_tokens))
        for i in range(0, len(ranked), size):
            yield from self._complete(ranked[i : i + size], sampling)

    @torch.no_grad()
    def _complete(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[str, list[Completion]]]:
        rows = [r.prompt_tokens for r in requests for _ in range(r.n)]
        longest = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (longest - len(r)) + list(r) for r in rows])
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
        greedy = sampling.temperature == 0
        drawing = (
            {"do_sample": False}
            if greedy
            else {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        )
        stopping = {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer}
        try:
            output = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                max_new_tokens=sampling.max_tokens,
                pad_token_id=self._pad,
                eos_token_id=sorted(self._ends),
                **drawing,
                **(stopping if sampling.stop else {}),
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise InfrastructureError(
                f"{self.policy} gives probabilities that are not finite", where="engine"
            ) from error
        texts = iter(output[:, longest:].tolist())
        for request in requests:
            yield request.id, [self._completion(next(texts), sampling) for _ in range(request.n)]

    def _completion(self, tokens: list[int], sampling: Sampling) -> Completion:
        end = next((i for i, t in enumerate(tokens) if t in self._ends), None)
        finish: Finish = "length" if end is None else "stop"
        if end is not None:
            tokens = tokens[: end + 1]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        if end is None:
            cut = min((text.find(s) for s in sampling.stop if s in text), default=None)
            if cut is not None:
                # Another row may have gone on for longer: drop what was padded after the stop.
                tokens = self._until(tokens, text, sampling.stop)
                text, finish = text[:cut], "stop"
        return Completion(text, tuple(tokens), finish)

    def _until(self, tokens: list[int], text: str, stop: Sequence[str]) -> list[int]:
        """The shortest head of `tokens` whose text holds a stop string."""
        for count in range(1, len(tokens) + 1):
            head = self._tokenizer.decode(tokens[:count], skip_special_tokens=True)
            if any(s in head for s in stop):
                return tokens[:count]
        return tokens

    def load(self, policy: str, path: str) -> None:
        """Replace the weights in place; refuses files that do not fit before it changes any."""
        state: dict[str, torch.Tensor] = {}
        for file in sorted(Path(path).glob("*.safetensors")):
            state |= load_file(file)
        own = self._model.state_dict()
        tied = set(self._model.all_tied_weights_keys or ())
        missing = [k for k in own if k not in state and k not in tied]
        wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
        if missing or wrong:
            raise DataError(
                f"the weights do not fit the model (missing {missing[:3]}, other {wrong[:3]})",
                where=path,
                remedy="the checkpoint is damaged: delete it and its train step, then resume",
            )
        self._model.load_state_dict(state, strict=False)
        self._model.tie_weights()
        self.policy = policy

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it; 0.0 for the first."""
        return [self._logprobs(list(sequence)) for sequence in sequences]

    def _logprobs(self, tokens: list[int]) -> list[float]:
        ids = torch.tensor([tokens], device=self._model.device)
        log_probs = self._model(ids).logits[0, :-1].float().log_softmax(-1)
        return [0.0, *log_probs.gather(1, ids[0, 1:, None]).squeeze(1).tolist()]


def _end_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    ends = generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {t for t in (*listed, tokenizer.eos_token_id) if t is not None}
