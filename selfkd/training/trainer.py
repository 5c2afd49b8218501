"""The trainer process: makes one policy out of another, and says how it did. Never loads vLLM."""

import gc
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from selfkd.errors import DataError
from selfkd.hardware import compute_dtype, cores
from selfkd.records import Example, read_rows
from selfkd.training.base import TrainJob, TrainReport
from selfkd.training.rounding import round_to_bfloat16

CANARY_TOKENS = 200
"""Length of the long canary: over 128, so that a sampler's cached prompt prefix takes part."""

WEIGHTS = (".safetensors", ".index.json")


class LocalTrainer:
    """Trains in its own process; see `Trainer` in `training/base.py`.

    Weights are trained in float32. Where products are computed in bfloat16, the policy is stored
    in bfloat16 too, rounded stochastically (`rounding.py`), so that sampler and next training hold
    the same weights.
    """

    def __init__(self) -> None:
        torch.set_num_threads(cores())

    def train(self, job: TrainJob) -> TrainReport:
        """Train on the job's examples and save the policy to `out_dir`.

        Raises DataError for an empty set, Diverged for a loss or gradient that is not finite;
        nothing is saved then.
        """
        from transformers import AutoTokenizer, set_seed

        started = time.monotonic()
        examples = [e for f in job.example_files for e in read_rows(pq.read_table(f), Example)]
        if not examples:
            raise DataError("there is no example to train on", where=job.example_files[0])
        set_seed(job.seed)
        tokenizer = AutoTokenizer.from_pretrained(job.start_path)
        model = _load(job)
        trainer = _make_trainer(model, tokenizer, examples, job)
        trainer.train()
        model = trainer.model.merge_and_unload() if job.options.lora_rank else model
        dtype = compute_dtype(job.options.dtype)
        if dtype == "bfloat16":
            round_to_bfloat16(model, job.seed)
        canary = _canary(model, examples)
        _save(model.to(getattr(torch, dtype)), job)
        report = TrainReport(
            steps=trainer.state.global_step,
            examples=len(examples),
            tokens=trainer.tokens_seen,
            loss_first=trainer.losses[0],
            loss_last=trainer.losses[-1],
            seconds=time.monotonic() - started,
            canary=canary,
        )
        del trainer, model
        gc.collect()
        return report


def _make_trainer(model: Any, tokenizer: Any, examples: Sequence[Example], job: TrainJob) -> Any:
    from selfkd.training import sft

    makers = {"sft": sft.make_trainer}
    return makers[job.objective](model, tokenizer, examples, job, compute_dtype(job.options.dtype))


def _load(job: TrainJob) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job.start_path, dtype=torch.float32, use_safetensors=True
    )
    if job.options.lora_rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=job.options.lora_rank,
            lora_alpha=2 * job.options.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)  # type: ignore[arg-type]
    return model


def _save(model: Any, job: TrainJob) -> None:
    out = Path(job.out_dir)
    # What transformers changed for training must not end up in the policy.
    model.config.use_cache = True
    model.save_pretrained(out)
    for file in Path(job.start_path).iterdir():
        own = (out / file.name).exists() or file.name == "MANIFEST.json"
        if file.is_file() and not own and not file.name.endswith(WEIGHTS):
            shutil.copy(file, out / file.name)


@torch.no_grad()
def _canary(
    model: Any, examples: Sequence[Example]
) -> tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]:
    """Log-probabilities, in float32, of a short and a long fixed sequence under `model`."""
    first = [*examples[0].prompt_tokens, *examples[0].completion_tokens]
    limit = min(CANARY_TOKENS, getattr(model.config, "max_position_embeddings", CANARY_TOKENS))
    long = (first * (limit // len(first) + 1))[:limit]
    model.eval()
    pairs = []
    for tokens in (first[:limit], long):
        ids = torch.tensor([tokens], device=model.device)
        log_probs = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        picked = log_probs.gather(1, ids[0, 1:, None]).squeeze(1)
        pairs.append((tuple(tokens), (0.0, *picked.tolist())))
    return tuple(pairs)
