"""Distillation on exact tokens; `selfkd.objectives.GKD` states the loss.

Student and teacher are asked for hidden states only. The divergence is computed from those and the
two output heads by `selfkd.kernels`, so the logits of neither are ever held whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from selfkd.kernels import Divergence, fused_linear_divergence, sparse_linear_divergence
from selfkd.records import Example
from selfkd.training.base import TrainJob
from selfkd.training.collator import IGNORED, Collator
from selfkd.training.hidden import check_head, hidden_states, output_head
from selfkd.training.recall import Row, length, seen_by_teacher
from selfkd.training.rounding import Rounding
from selfkd.training.sft import WeightedSFTTrainer, arguments, padding_token
from selfkd.training.teachers import Ema, Live, Served, Teacher, ask_once


class DistilCollator:
    """Batches of students' rows, and beside them the teacher's where it sees another prompt.

    A row holds what `Collator` wants, its number `row`, and maybe `token_weights` of its completion
    and `teacher_prompt`.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._collate = Collator(pad_token_id)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """As `Collator`, with `rows` (B,), `mask` and `token_weights` (B, T - 1).

        The mask is 1 where the next token is one of the completion. The teacher's rows, of length
        T', are `teacher_input_ids`, `teacher_attention_mask` (B, T') and `teacher_mask`.
        """
        batch = self._collate(rows)
        mask = batch["mask"] = batch["labels"][:, 1:] != IGNORED
        weights = [w for row in rows for w in row["token_weights"] or [1.0] * length(row)]
        given = torch.tensor(weights, dtype=torch.float32)
        batch["token_weights"] = mask.float().masked_scatter(mask, given)
        batch["rows"] = torch.tensor([row["row"] for row in rows])
        if any(row["teacher_prompt"] for row in rows):
            seen = self._collate([seen_by_teacher(row) for row in rows])
            seen["mask"] = seen["labels"][:, 1:] != IGNORED
            names = ("input_ids", "attention_mask", "mask")
            batch |= {f"teacher_{name}": seen[name] for name in names}
        return batch


class DistilTrainer(WeightedSFTTrainer):
    """Logs, a step: both entropies (nats) and how often both have the same likeliest token."""

    teacher: Teacher | Served

    def __init__(self, *args: Any, settings: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = {name: settings[name] for name in ("kind", "beta", "temperature")}

    def weights_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """Weight of each predicted token, shape (B, T - 1)."""
        return batch["token_weights"] * batch["weights"][:, None]

    def loss_of(
        self, model: Any, batch: dict[str, torch.Tensor], weights: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """Sum of weight times divergence over this micro-batch, over the weight of the step."""
        mask = batch["mask"]
        with self.accelerator.autocast():
            divergence = self._divergence(model, batch, weights[mask], total)
        for name in ("student_entropy", "teacher_entropy", "agreement"):
            values = getattr(divergence, f"{name}_N").float()
            self.note(**{name: torch.zeros_like(weights).masked_scatter(mask, values)})
        return divergence.loss

    def _divergence(
        self, model: Any, batch: dict[str, torch.Tensor], weight_N: torch.Tensor, total: Any
    ) -> Divergence:
        options = self._options | {"weight_N": weight_N, "normalizer": total}
        if isinstance(self.teacher, Served):
            states = hidden_states(model, batch, batch["mask"])
            own = output_head(model)
            ids, logprobs = self.teacher.likeliest(batch)
            return sparse_linear_divergence(
                states, own.weight_VH, ids, logprobs, student_bias_V=own.bias_V, **options
            )
        taught, theirs = self.teacher.states(model, batch)
        states = hidden_states(model, batch, batch["mask"])
        # Heads may be padded to different sizes beyond the tokenizer's vocabulary.
        heads = output_head(model), theirs
        size = min(len(head.weight_VH) for head in heads)
        own, theirs = (h if len(h.weight_VH) == size else h.rows(size) for h in heads)
        return fused_linear_divergence(
            states,
            own.weight_VH,
            taught,
            theirs.weight_VH,
            student_bias_V=own.bias_V,
            teacher_bias_V=theirs.bias_V,
            **options,
        )


class _Stepped(TrainerCallback):
    """Tells the teacher of each optimiser step."""

    def __init__(self, teacher: Teacher | Served) -> None:
        self._teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._teacher.stepped(kwargs["model"])


def make_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], job: TrainJob, dtype: str
) -> DistilTrainer:
    """A trainer over the examples' exact tokens with its teacher at hand, ready to `train()`."""
    settings = job.objective_options
    check_head(model, (*examples[0].prompt_tokens, *examples[0].completion_tokens), "the student")
    rows = [_row(number, example) for number, example in enumerate(examples)]
    trainer = DistilTrainer(
        model=model,
        args=arguments(job, dtype, len(rows)),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        data_collator=DistilCollator(padding_token(tokenizer)),
        log_file=Path(job.log_file),
        seed=job.seed,
        settings=settings,
    )
    if settings["teacher"] == "live":
        trainer.teacher = Live()
    elif settings["teacher"] == "served":
        trainer.teacher = Served(examples)
    elif settings["teacher"] == "ema":
        rounding = Rounding(job.rounding_seed) if dtype == "bfloat16" else None
        trainer.teacher = Ema(model, settings["ema_decay"], rounding)
    else:
        kept = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        trainer.teacher = ask_once(trainer, rows, job, kept, len(tokenizer))
    trainer.add_callback(_Stepped(trainer.teacher))
    return trainer


def _row(number: int, example: Example) -> Row:
    teacher = example.teacher_prompt_tokens
    return {
        "input_ids": [*example.prompt_tokens, *example.completion_tokens],
        "prompt_length": len(example.prompt_tokens),
        "weight": example.weight,
        "token_weights": None if example.token_weights is None else list(example.token_weights),
        "teacher_prompt": None if teacher is None else list(teacher),
        "row": number,
    }
