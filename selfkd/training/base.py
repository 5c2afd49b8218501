"""What the engine asks of whatever updates a policy."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationInfo, field_validator

from selfkd.options import Options

LESS_MEMORY = (
    "free some and resume, or `selfkd fork` the run with a lower train.micro_batch_size, shorter "
    "sequences (sampling.max_tokens), train.dtype=bfloat16 or a train.lora_rank"
)
"""What to do where a training has too little. Of these keys none may change on resume."""


CANARY_END = 16
"""Tokens at the end of a canary's longest sequence that an engine scores one by one."""
CANARY_TOKENS = 128 + CANARY_END + 1
"""Length of that sequence: its end comes right after a whole block of 128, the largest unit of
vLLM's prefix cache, so that little beside what is read from the cache is computed anew."""


class TrainOptions(Options):
    """Optimiser settings shared by every objective (config section `train`)."""

    learning_rate: float = Field(2e-5, gt=0, allow_inf_nan=False)
    """Peak learning rate."""
    epochs: float = Field(2.0, gt=0)
    """Passes over the kept examples; ignored where a loop asks for a number of steps."""
    batch_size: int = Field(16, ge=1)
    """Examples per optimiser step."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Examples per forward pass, a divisor of batch_size; gradients accumulate up to batch_size.
    Default: batch_size."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Learning-rate schedule after the warm-up."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping norm."""
    grad_norm_limit: float | None = Field(None, gt=0)
    """A gradient norm, before clipping, beyond which the training has diverged. Default: only one
    that is not finite."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What products are computed in; auto takes bfloat16 where the hardware multiplies it fast. It
    sees the weights rounded stochastically in each step; the optimiser's stay float32."""
    lora_rank: int = Field(0, ge=0)
    """LoRA rank; 0 trains every weight."""
    lora_save: Literal["merged", "adapter"] = "merged"
    """With LoRA, a policy is stored as a whole model, or as the adapter alone (PEFT format)."""

    @property
    def adapter_only(self) -> bool:
        """Whether a policy is stored as an adapter."""
        return self.lora_rank > 0 and self.lora_save == "adapter"

    def steps(self, examples: int) -> int:
        """Optimiser steps of a training on so many examples."""
        return math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    @field_validator("micro_batch_size")
    @classmethod
    def _divides(cls, value: int | None, info: ValidationInfo) -> int | None:
        batch_size = info.data.get("batch_size")
        if value and batch_size and batch_size % min(value, batch_size):
            raise ValueError(f"it must divide batch_size, which is {batch_size}")
        return value


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which steps of a longer training a job makes; `training/state.py` carries over the rest."""

    first: int
    """Optimiser steps planned before it."""
    total: int
    """Those of the whole training."""
    state_from: str | None
    """The file that the job before left; None for the first."""
    state_to: str | None
    """The file to leave for the next one; None for the last."""


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens of a prompt and of what follows it."""

    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Texts on which the new policy is compared with the base and the one before."""

    texts: tuple[Text, ...]
    from_base: bool
    """Whether the training starts from the base."""
    previous: str | None
    """The file that the policy before left; None where that one is the base."""
    out: str
    """The file to leave."""


@dataclass(frozen=True, slots=True)
class StatesFiles:
    """Where the states of one teacher are kept over trainings (`training/recall.py`)."""

    known: tuple[str, ...]
    """Files that trainings left."""
    out: str
    """The file to leave."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One training: plain values only, so that it crosses processes."""

    objective: str
    """`sft`, `dpo`, `kto` or `gkd`."""
    objective_options: dict[str, Any]
    example_files: tuple[str, ...]
    """Parquet files of schema `records.EXAMPLES`."""
    start_path: str
    """HF model directory to start from."""
    out_dir: str
    """Empty directory to write the new policy to (HF format, safetensors, tokenizer included)."""
    log_file: str
    """JSON lines: {"step", "loss", "grad_norm", "learning_rate", "epoch", "tokens"}."""
    seed: int
    options: TrainOptions
    max_steps: int | None = None
    """Optimiser steps; overrides epochs."""
    merged_dir: str | None = None
    """Empty directory for the whole model, where `out_dir` takes an adapter alone."""
    ref_path: str | None = None
    """HF model directory of the reference policy or fixed teacher, where an objective has one."""
    stretch: Stretch | None = None
    """Set where this job is a part of a training; it starts from `start_path` all the same."""
    probe: Probe | None = None
    states: StatesFiles | None = None
    """Set where the states of the teacher in `ref_path` are kept."""
    fsdp: bool = False
    """Each worker holds its part of weights, gradients and optimiser state."""

    @property
    def rounding_seed(self) -> int:
        """Of the first step's noise; each step adds one, also where a training is cut."""
        return self.seed + (self.stretch.first if self.stretch else 0)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did."""

    steps: int
    examples: int
    tokens: int
    """Non-padding tokens processed, prompts included, all epochs."""
    loss_first: float
    loss_last: float
    seconds: float
    canary: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()
    """(tokens, log-probabilities) pairs of fixed sequences under the new policy, against which a
    sampler checks that it really holds these weights."""
    step_seconds: float = 0.0
    """Of `seconds`, those in optimiser steps: without reading and writing models."""
    kl_base: float | None = None
    """Nats a token between the new policy and the base on the job's probe, and `kl_previous`
    between it and the policy before; None where they were not measured."""
    kl_previous: float | None = None
    teacher_asked: int | None = None
    """Different examples that a teacher which stays the same was asked about; the states of others
    were known. None where there is no such teacher."""


class Trainer(Protocol):
    """Lives in one actor process for the whole run."""

    def train(self, job: TrainJob) -> TrainReport:
        """Train and save; DataError on a NaN loss or an empty set, and nothing is saved then."""
        ...
