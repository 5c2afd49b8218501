"""How far a policy has moved, in next-token probabilities on a few fixed texts.

At each token of the texts the vocabulary is cut into buckets: the base's K likeliest tokens, one
each, and all the others together. What is measured is

    KL(policy || other) = 1/N sum_t sum_k q_tk log(q_tk / p_tk),

over buckets k and the N tokens t, q the policy's probabilities and p the other's. To merge tokens
never makes a divergence larger: it is a lower bound of the one over the whole vocabulary. The texts
are the base's own and stay the same, so rounds can be compared; it is not the divergence over what
the policy itself would write.

What a policy says of the texts, and what the base said, lies in its directory: the next training
compares with it, and the base is looked at once a run.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfkd.chat import shared_length
from selfkd.kernels.buckets import in_buckets
from selfkd.kernels.measures import FLOOR, closed_form, measure
from selfkd.records import content_hash
from selfkd.training.base import Probe, Text
from selfkd.training.checkpoints import file_errors
from selfkd.training.collator import IGNORED, Collator
from selfkd.training.hidden import logits_of

LIKELIEST = 64
TOKENS = 256
"""Most tokens, with what fills up short texts, of a forward pass over several texts."""
REVERSE_KL = measure("reverse_kl", 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Distances:
    """Nats a token, from the base and from the policy before; None where that one is not known."""

    kl_base: float | None = None
    kl_previous: float | None = None


UNKNOWN = Distances()


class Yardstick:
    """What the base, and the policy before, say of the texts: made before a training starts."""

    def __init__(self, start: Callable[[], Any], probe: Probe) -> None:
        """`start` gives the model that is to be trained, as it starts, if it has to be asked."""
        self._probe = probe
        # Side by side, texts of one length need no filling up.
        self._texts = sorted(probe.texts, key=lambda t: len(t.prompt_tokens + t.completion_tokens))
        self._key = content_hash([[t.prompt_tokens, t.completion_tokens] for t in self._texts])
        self._known: dict[str, Tensor] = {}
        if probe.previous:
            self._known = _read(Path(probe.previous), self._key)
        if not self._known and probe.from_base and probe.texts:
            ids, said = _likeliest(start(), self._texts)
            self._known = {"ids": ids, "base": said}
            if not probe.previous:
                self._known["policy"] = said

    def measure(self, model: Any) -> Distances:
        """Distances of a trained model, whose own record is written for the next training."""
        if not self._known:
            return UNKNOWN
        said = _look(model, self._texts, self._known["ids"])
        record = {"ids": self._known["ids"], "base": self._known["base"], "policy": said}
        with file_errors():
            save_file(record, self._probe.out, {"texts": self._key})
        before = self._known.get("policy")
        return Distances(
            _kl(self._known["base"], said), None if before is None else _kl(before, said)
        )


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """A policy's record; nothing where it is missing or of other texts."""
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("texts") != key:
            return {}
        return {name: file.get_tensor(name) for name in ("ids", "base", "policy")}


def _kl(other_NK: Tensor, policy_NK: Tensor) -> float:
    return closed_form(other_NK.double(), policy_NK.double(), REVERSE_KL)[0].mean().item()


def _likeliest(model: Any, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """The likeliest tokens at each token of the texts (N, K), and their buckets (N, K + 1)."""
    ids, said = [], []
    for log_probs in _log_probs(model, texts):
        ids.append(log_probs.topk(min(LIKELIEST, log_probs.shape[-1])).indices)
        said.append(_buckets(log_probs, ids[-1]))
    return torch.cat(ids).int().cpu(), torch.cat(said)


def _look(model: Any, texts: Sequence[Text], ids_NK: Tensor) -> Tensor:
    """The buckets (N, K + 1) of the tokens asked for."""
    said, done = [], 0
    for log_probs in _log_probs(model, texts):
        ids = ids_NK[done : done + len(log_probs)]
        said.append(_buckets(log_probs, ids))
        done += len(log_probs)
    return torch.cat(said)


def _buckets(log_probs_TV: Tensor, ids_TK: Tensor) -> Tensor:
    ids = ids_TK.to(log_probs_TV.device, torch.long)
    return in_buckets(log_probs_TV, ids).clamp_min(FLOOR).cpu()


@torch.no_grad()
def _log_probs(model: Any, texts: Sequence[Text]) -> Iterator[Tensor]:
    """Of every token of the vocabulary, in float32, at each token of the texts: parts of (N, V)."""
    model.eval()
    # What all prompts begin with, and more follows: most of a chat template, often.
    beginnings = [text.prompt_tokens[:-1] for text in texts]
    shared = beginnings[0][: shared_length(beginnings)]
    cache = _read_once(model, shared) if shared else None
    collate = Collator(pad_token_id=0)  # no token sees what fills up a row
    for rows in _batches(texts, 0 if cache is None else len(shared)):
        batch = {name: values.to(model.device) for name, values in collate(rows).items()}
        seen: dict[str, Any] = {n: batch[n] for n in ("input_ids", "attention_mask")}
        if cache is not None:
            own = copy.deepcopy(cache)
            own.batch_repeat_interleave(len(rows))
            before = seen["attention_mask"].new_ones(len(rows), len(shared))
            whole = torch.cat([before, seen["attention_mask"]], 1)
            seen |= {"attention_mask": whole, "past_key_values": own}
        mask = batch["labels"][:, 1:] != IGNORED
        yield logits_of(model, seen, mask).float().log_softmax(-1)


def _read_once(model: Any, tokens: Sequence[int]) -> Any:
    """The model's cache of tokens that every text begins with; None where it keeps another kind."""
    from transformers import DynamicCache

    ids = torch.tensor([tokens], device=model.device)
    cache = model(ids, use_cache=True).past_key_values
    return cache if isinstance(cache, DynamicCache) else None


def _batches(texts: Sequence[Text], skip: int) -> Iterator[list[dict[str, Any]]]:
    """Rows for `Collator`, but for their first `skip` tokens, as many a time as `TOKENS` allows."""
    rows: list[dict[str, Any]] = []
    longest = 0
    for text in texts:
        tokens = [*text.prompt_tokens[skip:], *text.completion_tokens]
        longest = max(longest, len(tokens))
        if rows and longest * (len(rows) + 1) > TOKENS:
            yield rows
            rows, longest = [], len(tokens)
        rows.append(
            {"input_ids": tokens, "prompt_length": len(text.prompt_tokens) - skip, "weight": 1.0}
        )
    if rows:
        yield rows
