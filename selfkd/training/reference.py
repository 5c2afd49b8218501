"""Training against a reference policy without a second copy of the model in memory.

The reference log-probabilities of all rows are computed once, before the first step: by the model
itself, its adapter switched off, where it starts from the reference, else by a model that is gone
again when training begins. TRL's DPOTrainer would keep a copy, or a second adapter; and it averages
over micro-batches of different size, which the exact weights of a step here do not allow.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from selfkd.training.base import TrainJob
from selfkd.training.sft import Collator, WeightedSFTTrainer, token_nll

Row = dict[str, Any]


class TwinCollator:
    """Batches of B examples with two rows each, as 2B rows: all first ones, then all second ones.

    A row of the data set holds `input_ids` and `prompt_length`, `twin_ids` and `twin_length`,
    `weight`, and `reference`, the reference log-probabilities of its two rows.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._collate = Collator(pad_token_id)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """As `Collator`, for 2B rows, with `reference` (2B,) and `desirable` (B,)."""
        names = (("input_ids", "prompt_length"), ("twin_ids", "twin_length"))
        twins = [
            {"input_ids": row[ids], "prompt_length": row[length], "weight": row["weight"]}
            for ids, length in names
            for row in rows
        ]
        batch = self._collate(twins)
        for name, values in {
            "reference": [
                row.get("reference", (0.0, 0.0))[side] for side in (0, 1) for row in rows
            ],
            "desirable": [float(row.get("desirable", True)) for row in rows],
        }.items():
            batch[name] = torch.tensor(values, dtype=torch.float32)
        return batch


def sequence_logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed log-probability of each row's completion, shape (rows,)."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return -token_nll(model, inputs, batch["labels"]).sum(1)


class ReferencedTrainer(WeightedSFTTrainer):
    """Steps whose loss is the weighted mean of `losses` over their examples."""

    def losses_of(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each example, shape (B,)."""
        raise NotImplementedError

    def _lengths(self, rows: Any) -> list[int]:
        pairs = zip(rows["input_ids"], rows["twin_ids"], strict=True)
        return [max(len(one), len(other)) for one, other in pairs]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor:
        """The weight of the examples of an optimiser step, over all its micro-batches."""
        return torch.stack([_weights(b).sum() for b in batch_samples]).sum().to(device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The part of the step's loss that this micro-batch contributes."""
        weights = _weights(inputs)
        self.tokens_seen += int(inputs["attention_mask"].sum())
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        self._share = weights / torch.as_tensor(total).clamp(min=1e-8)
        return self.finite((self.losses_of(model, inputs) * self._share).sum())

    def note(self, **figures: torch.Tensor) -> None:
        """Log the weighted mean over the step of figures of shape (B,)."""
        for name, values in figures.items():
            mean = (values.detach() * self._share).sum().item()
            self.figures[name] = self.figures.get(name, 0.0) + mean

    def add_reference(self, job: TrainJob, rows: list[Row]) -> None:
        """Give every row its `reference`."""
        size = self.args.per_device_train_batch_size
        own = job.ref_path in (None, job.start_path)
        model: Any = self.model if own else _load(str(job.ref_path), self.args.device)
        off = model.disable_adapter() if own and job.options.lora_rank else nullcontext()
        training = model.training
        model.eval()
        with torch.no_grad(), off, self.accelerator.autocast():
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                batch = {k: v.to(self.args.device) for k, v in self.data_collator(part).items()}
                pairs = sequence_logps(model, batch).float().view(2, -1).T.tolist()
                for row, reference in zip(part, pairs, strict=True):
                    row["reference"] = reference
        model.train(training)


def _weights(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["weights"][: len(batch["weights"]) // 2]


def _load(path: str, device: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True
    )
    add_fused_lm_head(model)
    return model.to(device)
