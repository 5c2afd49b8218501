"""Makes one policy out of another, and says how that went: the work of a trainer's process."""

import contextlib
import gc
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from selfkd.errors import DataError, Diverged
from selfkd.files import file_sha256
from selfkd.hardware import FreedMemory, compute_dtype, prefers_onednn
from selfkd.kernels import pages
from selfkd.kernels.products import by_onednn
from selfkd.models import check_model_dir
from selfkd.records import Example, read_rows
from selfkd.training.adapters import merge, save_adapter
from selfkd.training.attention import suited_attention
from selfkd.training.base import CANARY_TOKENS, TrainJob, TrainReport
from selfkd.training.checkpoints import (
    cast,
    gathered,
    load,
    load_part,
    save,
    take,
    tokenizer_files,
)
from selfkd.training.probe import UNKNOWN, Distances, Yardstick
from selfkd.training.rounding import RoundedSteps, round_to_bfloat16
from selfkd.training.state import continue_training, save_state


class Workbench:
    """Trains one policy after the other in this process, and keeps the last one's model in memory.

    Weights are trained in float32. Where products are computed in bfloat16, or the start was stored
    in it, the policy is stored in bfloat16 too, rounded stochastically (`rounding.py`), so that
    sampler and next training hold the same weights.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None
        """The model that was saved last: the next training often starts from it."""
        self._tokenizer: tuple[Any, Any] = (None, None)
        """The last one, after the content of its files."""
        self._freed = FreedMemory(pages.release)

    @by_onednn(prefers_onednn())
    def train(self, job: TrainJob) -> TrainReport:
        """Train as `job` says; see `LocalTrainer.train` in `actor.py`."""
        from transformers import set_seed

        started = time.monotonic()
        examples = [e for f in job.example_files for e in read_rows(pq.read_table(f), Example)]
        if not examples:
            raise DataError("there is no example to train on", where=job.example_files[0])
        check_model_dir(Path(job.start_path))
        set_seed(job.seed)
        model = self._start(job)
        attention = partial(suited_attention, model, examples, compute_dtype(job.options.dtype))
        with attention():  # a reference is asked as the policy will be
            trainer = _make_trainer(model, self._read_tokenizer(job.start_path), examples, job)
        trainer.grad_norm_limit = job.options.grad_norm_limit
        if compute_dtype(job.options.dtype) == "bfloat16":
            trainer.add_callback(RoundedSteps(trainer.model, job.rounding_seed))
        saves = not trainer.args.process_index  # of several workers, the first one
        yardstick = _yardstick(trainer.model, job) if saves else None
        if job.stretch:
            state = job.stretch.state_from
            place = Path(state) if state else None
            continue_training(trainer, job.stretch.first, job.stretch.total, place)
        began = time.monotonic()
        with attention():
            trainer.train()
        step_seconds = time.monotonic() - began
        if job.stretch and job.stretch.state_to:
            save_state(trainer, Path(job.stretch.state_to))
        # Without the wrapper that computes in the training's dtype.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        dtype = _stored_dtype(job)
        if job.fsdp:
            model = gathered(model, Path(job.start_path))
        if not saves:
            return _report(trainer, examples, started, step_seconds)
        if job.options.adapter_only:
            save_adapter(model, job, dtype)
        if job.options.lora_rank:
            model = model.merge_and_unload()
        if dtype == "bfloat16":
            round_to_bfloat16(model, job.seed)
        canary = _canary(model, examples)
        moved = self._leave(model, dtype, job, yardstick)
        report = _report(trainer, examples, started, step_seconds, canary, moved)
        del trainer, model
        self._free_memory()
        return report

    def _leave(
        self, model: Any, dtype: str, job: TrainJob, yardstick: Yardstick | None
    ) -> Distances:
        """Write a trained model and keep it for the next training; how far it has moved, which is
        measured while the disk writes."""
        out = job.merged_dir or job.out_dir
        weights = cast(model, dtype)
        with ThreadPoolExecutor(1) as disk, _one_core_spared():
            saved = disk.submit(save, model, weights, Path(job.start_path), Path(out))
            moved = yardstick.measure(model) if yardstick else UNKNOWN
        saved.result()
        if not (job.fsdp or torch.cuda.is_available()):  # there TRL leaves its marks on a model
            # Accelerate's mark: a model that has it would not be given autocast again.
            model.__dict__.pop("_is_accelerate_prepared", None)
            take(model, weights)
            self._kept = _Kept(_identity(out), model)
        return moved

    def _start(self, job: TrainJob) -> Any:
        """The model to train, in float32: that in memory if it is what is stored there."""
        kept, self._kept = self._kept, None
        if job.fsdp:
            return load_part(job.start_path, compute_dtype(job.options.dtype))
        if kept and kept.identity == _identity(job.start_path):
            return _with_adapter(kept.model.float().requires_grad_(True), job)
        del kept
        return _load(job)

    def _read_tokenizer(self, path: str) -> Any:
        """Of a model directory; policies of a run have the same one."""
        from transformers import AutoTokenizer

        content = [(f.name, file_sha256(f)) for f in tokenizer_files(path)]
        if self._tokenizer[0] != content:
            self._tokenizer = content, AutoTokenizer.from_pretrained(path)
        return self._tokenizer[1]

    def merge(self, adapter: str, start: str, out: str) -> None:
        """Write the model that a stored adapter makes of its start to the new directory `out`."""
        merge(Path(adapter), Path(start), Path(out))
        self._free_memory()

    def _free_memory(self) -> None:
        """Free what a training used."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._freed.settle()


@contextlib.contextmanager
def _one_core_spared() -> Iterator[None]:
    """Leave a core to another thread: a product that shared it would wait for that one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _yardstick(model: Any, job: TrainJob) -> Yardstick | None:
    """Before the training of `model`, which one worker alone cannot ask where it has but a part."""
    whole = (lambda: load(job.start_path)) if job.fsdp else (lambda: model)
    return Yardstick(whole, job.probe) if job.probe else None


Identity = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A model in memory, and the files that hold the same weights."""

    identity: Identity
    model: Any


def _identity(path: str) -> Identity:
    """What tells whether weight files are the ones that were written: it stays when they move."""
    files = (file.stat() for file in sorted(Path(path).glob("*.safetensors")))
    return tuple((f.st_ino, f.st_mtime_ns, f.st_size) for f in files)


def _report(
    trainer: Any,
    examples: Sequence[Example],
    started: float,
    step_seconds: float,
    canary: Any = (),
    moved: Distances = UNKNOWN,
) -> TrainReport:
    return TrainReport(
        steps=trainer.state.global_step,
        examples=len(examples),
        tokens=trainer.tokens_in_all,
        loss_first=trainer.losses[0],
        loss_last=trainer.losses[-1],
        seconds=time.monotonic() - started,
        canary=canary,
        step_seconds=step_seconds,
        kl_base=moved.kl_base,
        kl_previous=moved.kl_previous,
        teacher_asked=getattr(getattr(trainer, "teacher", None), "asked", None),
    )


def _make_trainer(model: Any, tokenizer: Any, examples: Sequence[Example], job: TrainJob) -> Any:
    from selfkd.training import dpo, gkd, kto, sft

    makers = {"sft": sft, "dpo": dpo, "kto": kto, "gkd": gkd}
    maker = makers[job.objective].make_trainer
    return maker(model, tokenizer, examples, job, compute_dtype(job.options.dtype))


def _load(job: TrainJob) -> Any:
    return _with_adapter(load(job.start_path), job)


def _with_adapter(model: Any, job: TrainJob) -> Any:
    if job.options.lora_rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=job.options.lora_rank,
            lora_alpha=2 * job.options.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    return model


def _stored_dtype(job: TrainJob) -> str:
    """What the policy is stored in: float32 where nothing narrower was ever involved."""
    config = json.loads((Path(job.start_path) / "config.json").read_text())
    start = config.get("dtype") or config.get("torch_dtype")
    exact = start in (None, "float32") and compute_dtype(job.options.dtype) == "float32"
    return "float32" if exact else "bfloat16"


@torch.no_grad()
def _canary(
    model: Any, examples: Sequence[Example]
) -> tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]:
    """Log-probabilities, in float32, of a short and a long sequence of what was trained on."""
    limit = min(CANARY_TOKENS, getattr(model.config, "max_position_embeddings", CANARY_TOKENS))
    cycle = (t for e in itertools.cycle(examples) for t in (*e.prompt_tokens, *e.completion_tokens))
    long = tuple(itertools.islice(cycle, limit))
    first = len(examples[0].prompt_tokens) + len(examples[0].completion_tokens)
    model.eval()
    ids = torch.tensor([long], device=model.device)
    log_probs = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    picked = log_probs.gather(1, ids[0, 1:, None]).squeeze(1)
    if not torch.isfinite(picked).all():
        raise Diverged(
            "the trained policy gives log-probabilities that are not finite",
            where="train",
            remedy="lower train.learning_rate",
        )
    scored = (0.0, *picked.tolist())
    return tuple((long[:count], scored[:count]) for count in (first, len(long)))
