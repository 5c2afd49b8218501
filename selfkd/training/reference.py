"""Training against a reference policy without a second copy of the model in memory.

The reference log-probabilities of all rows are computed once, before the first step: by the model
itself, its adapter switched off, where it starts from the reference, else by a model that is gone
again when training begins. TRL's DPOTrainer would keep a copy, or a second adapter; and it averages
over micro-batches of different size, which the exact weights of a step here do not allow.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from datasets import Dataset

from selfkd.training.base import TrainJob
from selfkd.training.checkpoints import load
from selfkd.training.collator import Collator
from selfkd.training.sft import (
    WeightedSFTTrainer,
    arguments,
    padding_token,
    token_nll,
    with_filler,
)

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
    return -token_nll(model, batch).sum(1)


class ReferencedTrainer(WeightedSFTTrainer):
    """Steps whose loss is the weighted mean of `losses_of` over their examples."""

    def weights_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """Weight of each example, shape (B,)."""
        return batch["weights"][: len(batch["weights"]) // 2]

    def losses_of(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each example, shape (B,)."""
        raise NotImplementedError

    def _lengths(self, rows: Any) -> list[int]:
        pairs = zip(rows["input_ids"], rows["twin_ids"], strict=True)
        return [max(len(one), len(other)) for one, other in pairs]

    @classmethod
    def over(
        cls, rows: list[Row], model: Any, tokenizer: Any, job: TrainJob, dtype: str, **more: Any
    ) -> Self:
        """A trainer over rows as `TwinCollator` wants them, ready to `train()`.

        The rows are given their reference log-probabilities.
        """
        trainer = cls(
            model=model,
            args=arguments(job, dtype, len(rows)),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            data_collator=TwinCollator(padding_token(tokenizer)),
            log_file=Path(job.log_file),
            seed=job.seed,
            settings=job.objective_options,
            **more,
        )
        trainer._add_reference(job, rows)
        trainer.train_dataset = Dataset.from_list(with_filler(rows, trainer.args))
        return trainer

    def _add_reference(self, job: TrainJob, rows: list[Row]) -> None:
        """Give every row its `reference`."""
        size = self.args.per_device_train_batch_size
        own = job.ref_path in (None, job.start_path)
        policy: Any = self.model
        model = policy if own else _reference(str(job.ref_path), policy)
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


def _reference(path: str, policy: Any) -> Any:
    """The model of a directory, to be asked as the policy is."""
    from trl.trainer.utils import add_fused_lm_head

    model = load(path)
    model.set_attn_implementation(policy.config._attn_implementation)
    add_fused_lm_head(model)
    return model.to(policy.device)
