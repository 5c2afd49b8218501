"""A distillation step against TRL's `GKDTrainer`, on a CPU: `python benchmarks/gkd_step.py`.

SmolLM2-135M learns from another SmolLM2-135M by jsd with beta 0.5. Both trainers get the same
batches of the same tokens, with teacher and student forward passes, backward and the optimiser's
step in the time, and what trainers do around it: ours rounds the weights (selfkd/training/
rounding.py); sampling is apart. Ours asks the teacher first, as a training does, and that is in the
time too. The two take turns, so that what else the machine does falls on both alike, and the
ratio is the median over the turns. Prints the target with pass or miss; exits 0 either way.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from selfkd.hardware import cores
from selfkd.models import pull
from selfkd.records import Example
from selfkd.training.base import TrainJob, TrainOptions
from selfkd.training.collator import IGNORED
from selfkd.training.gkd import make_trainer
from selfkd.training.hidden import output_head
from selfkd.training.rounding import RoundedSteps
from selfkd.training.teachers import Fixed, answers

TARGET = 1.5


@dataclass(frozen=True)
class Shape:
    """Lengths of the rows of a batch; completions end anywhere between a quarter and the whole."""

    name: str
    rows: int
    prompt: int
    completion: int


SHAPES = (Shape("sums", 16, 40, 64), Shape("longer", 8, 128, 256))


def examples(shape: Shape, draw: torch.Generator) -> list[Example]:
    """A batch of random tokens."""
    rows = []
    for i in range(shape.rows):
        low = shape.completion // 4
        length = int(torch.randint(low, shape.completion + 1, (1,), generator=draw))
        ids = torch.randint(100, 49_000, (shape.prompt + length,), generator=draw).tolist()
        tokens = tuple(ids[: shape.prompt]), tuple(ids[shape.prompt :])
        rows.append(Example(f"e{i}", f"p{i}", (), *tokens))
    return rows


def job(folder: Path, path: Path, batch: list[Example]) -> TrainJob:
    """Our training of one batch."""
    settings = {"kind": "jsd", "beta": 0.5, "temperature": 1.0, "teacher": "live", "ema_decay": 0}
    return TrainJob(
        objective="gkd",
        objective_options=settings,
        example_files=(),
        start_path=str(path),
        out_dir=str(folder),
        log_file=str(folder / "log.jsonl"),
        seed=0,
        options=TrainOptions.model_validate({"batch_size": len(batch), "dtype": "bfloat16"}),
        max_steps=1000,
    )


def ours(path: Path, teacher: Any, batch: list[Example], folder: Path) -> Callable[[], float]:
    """A step of selfkd's; returns its loss."""
    made = job(folder, path, batch)
    model = load(path)
    trainer = make_trainer(model, tokenizer(path), batch, made, "bfloat16")
    trainer.add_callback(RoundedSteps(model, made.rounding_seed))
    dataset: Any = trainer.train_dataset
    rows = list(dataset)
    inputs = trainer.data_collator(rows)
    head = output_head(teacher)

    def step() -> float:
        trainer.teacher = Fixed(answers(trainer, teacher, rows, folder, torch.bfloat16), head)
        return advance(trainer, inputs)

    return started(trainer, step)


def trls(path: Path, teacher: Any, batch: list[Example], folder: Path) -> Callable[[], float]:
    """A step of TRL's; returns its loss."""
    longest = max(len(e.prompt_tokens) + len(e.completion_tokens) for e in batch)
    shape = (len(batch), longest)
    inputs = {
        "input_ids": torch.full(shape, 2),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for i, e in enumerate(batch):
        ids = torch.tensor([*e.prompt_tokens, *e.completion_tokens])
        inputs["input_ids"][i, : len(ids)] = ids
        inputs["attention_mask"][i, : len(ids)] = 1
        inputs["labels"][i, len(e.prompt_tokens) : len(ids)] = ids[len(e.prompt_tokens) :]
    args = GKDConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(batch),
        lmbda=0.0,
        beta=0.5,
        max_steps=1000,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GKDTrainer(
        model=load(path),
        teacher_model=teacher,
        args=args,
        processing_class=tokenizer(path),
        train_dataset=Dataset.from_list([{"messages": []}] * len(batch)),
    )
    return started(trainer, lambda: advance(trainer, inputs))


def started(trainer: Any, step: Callable[[], float]) -> Callable[[], float]:
    """`step`, the trainer being readied as `train()` does."""
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    return step


def advance(trainer: Any, inputs: dict[str, torch.Tensor]) -> float:
    """One optimiser step, with the callbacks that `train()` makes around it."""
    handler, given = trainer.callback_handler, (trainer.args, trainer.state, trainer.control)
    handler.on_step_begin(*given)
    count = (inputs["labels"][:, 1:] != IGNORED).sum()
    loss = trainer.training_step(trainer.model_wrapped, dict(inputs), count)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    handler.on_pre_optimizer_step(*given)
    trainer.optimizer.step()
    handler.on_optimizer_step(*given)
    trainer.optimizer.zero_grad()
    return float(loss)


def load(path: Path) -> Any:
    """The student, in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def tokenizer(path: Path) -> Any:
    """Of the model."""
    return AutoTokenizer.from_pretrained(path)


def drifted(path: Path) -> Any:
    """A teacher: the same model, its weights a little off."""
    model = load(path)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=source)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="Timed steps of each.")
    turns = parser.parse_args().turns
    torch.set_num_threads(cores())
    path = pull("SmolLM2-135M-Instruct")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "trl", "transformers"))
    print(f"{date.today()}, {cores()} cores, {versions}, bfloat16 autocast, median of {turns}")
    print(f"{'batch':28} {'selfkd':>8} {'TRL':>8} {'ratio':>6}   losses")
    worst = float("inf")
    teacher = drifted(path)
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            batch = examples(shape, torch.Generator().manual_seed(0))
            steps = [make(path, teacher, batch, folder) for make in (ours, trls)]
            losses = [step() for step in steps]  # warm-up
            times: list[list[float]] = []
            for _ in range(turns):
                times.append([timed(step) for step in steps])
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(theirs / mine for mine, theirs in times)
        text = f"{shape.name}: {shape.rows} x {shape.prompt}+{shape.completion}"
        print(f"{text:28} {mine:7.2f}s {theirs:7.2f}s {ratio:5.2f}x   "
              + ", ".join(f"{loss:.4f}" for loss in losses), flush=True)  # fmt: skip
        worst = min(worst, ratio)
    print(f"at least {TARGET}x: {'pass' if worst >= TARGET else 'miss'} ({worst:.2f}x)")


def timed(step: Callable[[], float]) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
