"""What rounding a policy to bfloat16 costs: `python benchmarks/rounding.py RUN`.

Trains on the examples that a finished run recorded in its first round, keeping float32 weights, and
prints the loss on those examples of the base, of the trained weights, and of both ways to round
them: to the nearest (what loading float32 weights in bfloat16 does) and stochastically (what
selfkd stores).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfkd.models import resolve_model
from selfkd.records import Example, read_rows
from selfkd.training.base import TrainJob, TrainOptions
from selfkd.training.rounding import round_to_bfloat16
from selfkd.training.trainer import LocalTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    config = yaml.safe_load((run / "run.yaml").read_text())
    base = resolve_model(config["model"])
    (shard,) = run.glob("rounds/000/*-train/00000.parquet")
    examples = read_rows(pq.read_table(shard), Example)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(base, shard, Path(folder), config["train"])
        print(f"{'weights':24} loss on {len(examples)} examples")
        report("base", base, examples)
        report("trained, float32", trained, examples)
        report("  to nearest bfloat16", trained, examples, to_nearest)
        for seed in (0, 1):
            report(f"  stochastically, seed {seed}", trained, examples, seeded(seed))


def train(base: Path, shard: Path, folder: Path, options: dict[str, object]) -> Path:
    """A policy trained on one shard of examples, stored in float32 as its start is."""
    start, out = folder / "start", folder / "policy"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(start)
    AutoTokenizer.from_pretrained(base).save_pretrained(start)
    out.mkdir()
    job = TrainJob(
        objective="sft",
        objective_options={},
        example_files=(str(shard),),
        start_path=str(start),
        out_dir=str(out),
        log_file=str(folder / "log.jsonl"),
        seed=0,
        options=TrainOptions.model_validate({**options, "dtype": "float32"}),
    )
    LocalTrainer().train(job)
    return out


def to_nearest(model: torch.nn.Module) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def seeded(seed: int) -> Callable[[torch.nn.Module], None]:
    return lambda model: round_to_bfloat16(model, seed)


@torch.no_grad()
def report(
    name: str,
    path: Path,
    examples: list[Example],
    change: Callable[[torch.nn.Module], None] = lambda model: None,
) -> None:
    """Print the mean loss of the examples' completion tokens."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    change(model)
    losses = []
    for e in examples:
        ids = torch.tensor([[*e.prompt_tokens, *e.completion_tokens]])
        logits = model(ids).logits[0, len(e.prompt_tokens) - 1 : -1]
        losses.append(cross_entropy(logits, ids[0, len(e.prompt_tokens) :], reduction="none"))
    print(f"{name:24} {torch.cat(losses).mean().item():.4f}")


if __name__ == "__main__":
    main()
