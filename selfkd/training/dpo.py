"""Direct preference optimisation on exact tokens; `selfkd.objectives.DPO` states the loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from selfkd.records import Example
from selfkd.training.base import TrainJob
from selfkd.training.collator import IGNORED
from selfkd.training.reference import ReferencedTrainer, sequence_logps


def pair_losses(
    ratios: torch.Tensor,
    chosen_nll: torch.Tensor,
    *,
    beta: float,
    alpha: float,
    label_smoothing: float,
) -> torch.Tensor:
    """Loss of each pair, shape (B,).

    `ratios` (2B,): log p / p_ref of the chosen, then of the rejected completions; `chosen_nll`
    (B,): -log p of the chosen ones, a token.
    """
    chosen, rejected = ratios.chunk(2)
    margin = beta * (chosen - rejected)
    preference = (1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return alpha * chosen_nll - preference


class PairTrainer(ReferencedTrainer):
    """Logs, a step: log-probabilities, the margin, and the change of the chosen since the start."""

    def __init__(self, *args: Any, settings: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = {k: settings[k] for k in ("beta", "alpha", "label_smoothing")}

    def losses_of(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each pair, shape (B,)."""
        logps = sequence_logps(model, batch)
        ratios = logps - batch["reference"]
        lengths = (batch["labels"] != IGNORED).sum(1)
        chosen, rejected = logps.chunk(2)
        shift, other = ratios.chunk(2)
        margin = self._settings["beta"] * (shift - other)
        self.note(
            chosen_logp=chosen,
            rejected_logp=rejected,
            chosen_shift=shift,
            rejected_shift=other,
            margin=margin,
            accuracy=(margin > 0).float(),
        )
        nll = -chosen / lengths[: len(chosen)].clamp(min=1)
        return pair_losses(ratios, nll, **self._settings)


def make_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], job: TrainJob, dtype: str
) -> PairTrainer:
    """A trainer over pairs, its reference log-probabilities computed, ready to `train()`."""
    rows = [
        {
            "input_ids": [*e.prompt_tokens, *e.completion_tokens],
            "prompt_length": len(e.prompt_tokens),
            "twin_ids": [*e.prompt_tokens, *(e.rejected_tokens or ())],
            "twin_length": len(e.prompt_tokens),
            "weight": e.weight,
        }
        for e in examples
    ]
    return PairTrainer.over(rows, model, tokenizer, job, dtype)
