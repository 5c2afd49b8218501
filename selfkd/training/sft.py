"""Supervised fine-tuning on exact tokens, on TRL's SFTTrainer.

The loss of an optimiser step is the weighted mean over its completion tokens,

    L = sum_i w_i sum_t -log p(y_it | x_i, y_i<t)  /  sum_i w_i |y_i|,

over all micro-batches of the step. What is subclassed: weights, batches of similar length, and on
CPU the output head, which is applied only where a completion token is predicted.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from selfkd.errors import Diverged
from selfkd.records import Example
from selfkd.training.base import TrainJob
from selfkd.training.collator import IGNORED, Collator
from selfkd.training.hidden import logits_of

PADDING = 0.1
"""Share of padding that batches may have before examples are sorted by length."""


class SimilarLengths(Sampler[int]):
    """Every example once an epoch, in random batches that are only as sorted as they must be.

    Length goes with style, so batches of one length pull the policy to and fro. Examples are
    shuffled and sorted within windows of 1, 2, 4, ... batches, the smallest window that keeps
    padding under `PADDING`; then batches come in random order. Inside a batch the short ones come
    first, so micro-batches are of similar length too.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, share: int = 1
    ) -> None:
        """Batches are filled up to a multiple of `share` with the number after the last example."""
        self._lengths = torch.tensor(lengths)
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._share = share

    def __len__(self) -> int:
        full, rest = divmod(len(self._lengths), self._batch_size)
        return sum(size + -size % self._share for size in (*[self._batch_size] * full, rest))

    def __iter__(self) -> Iterator[int]:
        shuffled = torch.randperm(len(self._lengths), generator=self._generator)
        window = 1
        batches = self._batches(shuffled, window)
        while self._padding(batches) > PADDING and window < len(batches):
            window *= 2
            batches = self._batches(shuffled, window)
        # A short batch stays last: a sampler's order is cut into batches from the front.
        full = [b for b in batches if len(b) == self._batch_size]
        order = torch.randperm(len(full), generator=self._generator).tolist()
        short = [b for b in batches if len(b) < self._batch_size]
        for batch in [*(full[i] for i in order), *short]:
            yield from batch.tolist()
            yield from [len(self._lengths)] * (-len(batch) % self._share)

    def _batches(self, shuffled: torch.Tensor, window: int) -> list[torch.Tensor]:
        # The short batch is cut off first, so that chance and not length decides what is in it.
        cut = len(shuffled) // self._batch_size * self._batch_size
        batches = []
        for part in (*shuffled[:cut].split(window * self._batch_size), shuffled[cut:]):
            ranked = part[torch.argsort(self._lengths[part], stable=True)]
            batches += ranked.split(self._batch_size)
        return [b for b in batches if len(b)]

    def _padding(self, batches: Sequence[torch.Tensor]) -> float:
        padded = sum(len(b) * int(self._lengths[b].max()) for b in batches)
        return 1 - int(self._lengths.sum()) / padded


class WeightedSFTTrainer(SFTTrainer):
    """SFTTrainer with per-example weights, a log of its own, and no tolerance for NaN."""

    loss_is_scaled_for_ga = True  # by the weight of the whole step

    def __init__(self, *args: Any, log_file: Path, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log_path = log_file
        if self.is_world_process_zero():
            self._log_path.write_text("", encoding="utf-8")
        self._seed = seed
        self.first_step = 0
        """Steps made before these ones, where a training is cut into several jobs."""
        self.planned_steps: int | None = None
        """Steps of the whole training, where these are not all."""
        self.grad_norm_limit: float | None = None
        """`TrainOptions.grad_norm_limit`."""
        self.tokens_seen = 0
        """By this worker."""
        self.tokens_in_all = 0
        """By all workers, up to the last logged step."""
        self.losses: list[float] = []
        self._share = torch.zeros(0)
        """Weights of the micro-batch in parts of the step's."""
        self._figures: dict[str, float] = {}
        """What was noted in the step, summed over its micro-batches."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = train_dataset or self.train_dataset
        lengths, workers = self._lengths(rows), self.args.world_size
        share = self.args.train_batch_size * workers
        step = share * self.args.gradient_accumulation_steps
        if workers == 1:
            return SimilarLengths(lengths, step, self._seed)
        # Every worker gets as many batches as the others; the last row fills them up.
        return SimilarLengths(lengths[:-1], step, self._seed, share=share)

    def _lengths(self, rows: Any) -> list[int]:
        return [len(ids) for ids in rows["input_ids"]]

    def weights_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """Weight of each predicted token, shape (B, T - 1)."""
        return (batch["labels"][:, 1:] != IGNORED) * batch["weights"][:, None]

    def losses_of(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What a step's loss is the weighted mean of; here -log p of each token, (B, T - 1)."""
        return token_nll(model, batch)

    def loss_of(
        self, model: Any, batch: dict[str, torch.Tensor], weights: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """Sum of weight times loss over this micro-batch, over the weight `total` of the step."""
        return (self.losses_of(model, batch) * weights).sum() / total

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor:
        """The weight of an optimiser step, over all its micro-batches and workers."""
        own = torch.stack([self.weights_of(b).sum() for b in batch_samples]).sum().to(device)
        return self._summed(own)

    def _summed(self, figures: torch.Tensor) -> torch.Tensor:
        """Figures summed over the workers."""
        several = self.args.world_size > 1
        return self.accelerator.reduce(figures, "sum") if several else figures  # type: ignore

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The part of the step's loss that this micro-batch contributes."""
        weights = self.weights_of(inputs)
        filled = inputs["weights"] > 0 if self.args.world_size > 1 else slice(None)
        self.tokens_seen += int(inputs["attention_mask"][filled].sum())
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        total = torch.as_tensor(total).clamp(min=1e-8)
        self._share = weights / total
        # The workers' gradients are averaged, and theirs are to be summed.
        loss = self.loss_of(model, inputs, weights, total) * self.args.world_size
        if not torch.isfinite(loss):
            raise Diverged(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}",
                where="train",
                remedy="lower train.learning_rate or train.max_grad_norm",
            )
        return loss

    def note(self, **figures: torch.Tensor) -> None:
        """Log the weighted mean over the step of figures of the shape of the losses."""
        for name, values in figures.items():
            mean = (values.detach() * self._share).sum().item()
            self._figures[name] = self._figures.get(name, 0.0) + mean

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line a step in the log file."""
        if "loss" not in logs:
            return
        norm, limit = logs["grad_norm"], self.grad_norm_limit or math.inf
        if norm > limit or not math.isfinite(norm):
            beyond = f", beyond train.grad_norm_limit ({limit:g})" if norm > limit else ""
            raise Diverged(
                f"the gradient norm is {norm:g} at step {self.state.global_step}{beyond}",
                where="train",
                remedy="lower train.learning_rate",
            )
        self.losses.append(logs["loss"])
        own = torch.tensor([float(self.tokens_seen), *self._figures.values()])
        tokens, *figures = self._summed(own.double().to(self.args.device)).tolist()
        names, self._figures = list(self._figures), {}
        self.tokens_in_all = int(tokens)
        if not self.is_world_process_zero():
            return
        row = {
            "step": self.first_step + self.state.global_step,
            "total_steps": self.planned_steps or self.state.max_steps,
            "loss": logs["loss"],
            "grad_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
            "epoch": self.state.epoch,
            "tokens": int(tokens),
            **dict(zip(names, figures, strict=True)),
        }
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def token_nll(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """-log p of the next token, shape (B, T - 1), zero where there is no label."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["labels"]
    if labels.is_cuda:
        return -model(**inputs, labels=labels, fused_lm_head=True).log_probs
    return _completion_nll(model, inputs, labels)


def _completion_nll(
    model: Any, batch: dict[str, torch.Tensor], labels: torch.Tensor
) -> torch.Tensor:
    """`token_nll` on CPU: logits of prompts and padding are never computed."""
    targets = labels[:, 1:]
    mask = targets != IGNORED
    logits = logits_of(model, batch, mask)
    nll = cross_entropy(logits.float(), targets[mask], reduction="none")
    return nll.new_zeros(mask.shape).masked_scatter(mask, nll)


def make_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], job: TrainJob, dtype: str
) -> WeightedSFTTrainer:
    """A trainer over the examples' exact tokens, ready to `train()`."""
    rows = [
        {
            "input_ids": [*e.prompt_tokens, *e.completion_tokens],
            "prompt_length": len(e.prompt_tokens),
            "weight": e.weight,
        }
        for e in examples
    ]
    args = arguments(job, dtype, len(rows))
    return WeightedSFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(with_filler(rows, args)),
        data_collator=Collator(padding_token(tokenizer)),
        log_file=Path(job.log_file),
        seed=job.seed,
    )


def with_filler(rows: list[dict[str, Any]], args: Any) -> list[dict[str, Any]]:
    """The rows, and where there are several workers, one without weight to fill up batches."""
    return [*rows, {**rows[0], "weight": 0.0}] if args.world_size > 1 else rows


def padding_token(tokenizer: Any) -> int:
    """The token that fills up short rows; attention never sees it."""
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def arguments(job: TrainJob, dtype: str, count: int) -> SFTConfig:
    """TRL's arguments for a job of `count` examples."""
    options = job.options
    batch = min(options.batch_size, count)
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    share = math.ceil(batch / workers)
    micro = min(options.micro_batch_size or share, share)
    on_cpu = not torch.cuda.is_available()
    steps = job.max_steps or options.steps(count)
    return SFTConfig(
        output_dir=job.out_dir,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and workers > 1 else None,
        bf16=dtype == "bfloat16",
        gradient_checkpointing=not on_cpu,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=math.ceil(share / micro),
        max_steps=steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=int(options.warmup_ratio * (job.stretch.total if job.stretch else steps)),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=job.seed,
        data_seed=job.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
