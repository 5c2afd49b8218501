"""Kahneman-Tversky optimisation on exact tokens; `selfkd.objectives.KTO` states the loss.

The reference point z is estimated on the micro-batch, as in the paper: there from the completions
of the same batch shifted by one, here from a completion of another prompt that each row is given
once, so that it exists for any batch size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from selfkd.records import Example
from selfkd.training.base import TrainJob
from selfkd.training.reference import ReferencedTrainer, sequence_logps


def verdict_losses(
    ratios: torch.Tensor,
    point: torch.Tensor,
    desirable: torch.Tensor,
    *,
    beta: float,
    weight_desirable: float,
    weight_undesirable: float,
) -> torch.Tensor:
    """Loss of each example, shape (B,): `ratios` (B,) log p / p_ref, `desirable` (B,) 1 or 0."""
    good = weight_desirable * (1 - torch.sigmoid(beta * (ratios - point)))
    bad = weight_undesirable * (1 - torch.sigmoid(beta * (point - ratios)))
    return desirable * good + (1 - desirable) * bad


class VerdictTrainer(ReferencedTrainer):
    """Logs, a step: the reference point and the mean log-ratio of desirable and other samples."""

    def __init__(self, *args: Any, settings: dict[str, Any], prompts: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = ("beta", "weight_desirable", "weight_undesirable")
        self._settings = {k: settings[k] for k in names}
        self._mismatched = prompts > 1

    def losses_of(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each example, shape (B,)."""
        half = len(batch["desirable"])
        own, other = (
            {k: v[part] for k, v in batch.items() if k != "desirable"} for part in _halves(half)
        )
        ratios = sequence_logps(model, own) - own["reference"]
        point = torch.zeros((), device=ratios.device)
        if self._mismatched:
            with torch.no_grad():
                shifts = sequence_logps(model, other) - other["reference"]
            point = shifts.mean().clamp(min=0)
        good = batch["desirable"]
        self.note(
            desirable_shift=good * ratios,
            undesirable_shift=(1 - good) * ratios,
            reference_point=point.expand(half),
        )
        return verdict_losses(ratios, point, good, **self._settings)


def _halves(size: int) -> tuple[slice, slice]:
    return slice(None, size), slice(size, None)


def make_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], job: TrainJob, dtype: str
) -> VerdictTrainer:
    """A trainer over verdicts, its reference log-probabilities computed, ready to `train()`."""
    prompts = len({e.prompt_id for e in examples})
    rows = _rows(examples, job.seed)
    return VerdictTrainer.over(rows, model, tokenizer, job, dtype, prompts=prompts)


def _rows(examples: Sequence[Example], seed: int) -> list[dict[str, Any]]:
    """A row an example; its twin is its prompt with the completion of another prompt."""
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    rows = []
    for e in examples:
        others = (examples[i] for i in order if examples[i].prompt_id != e.prompt_id)
        other = next(others, e)
        order.append(order.pop(0))  # the next example gets another one
        rows.append(
            {
                "input_ids": [*e.prompt_tokens, *_completion(e)],
                "prompt_length": len(e.prompt_tokens),
                "twin_ids": [*e.prompt_tokens, *_completion(other)],
                "twin_length": len(e.prompt_tokens),
                "weight": e.weight,
                "desirable": e.rejected_tokens is None,
            }
        )
    return rows


def _completion(example: Example) -> tuple[int, ...]:
    return example.rejected_tokens or example.completion_tokens
