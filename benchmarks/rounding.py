"""What rounding to bfloat16 costs, and when: `python benchmarks/rounding.py RUN`.

Distils the last policy of a finished run back into the base, on the examples that the run recorded,
and prints how far what was stored is from that teacher: trained in float32 and then rounded, to the
nearest number or stochastically, and trained in bfloat16, whose forward passes see weights that are
rounded to the nearest (autocast alone) or stochastically (what selfkd does).
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from selfkd.models import resolve_model
from selfkd.records import Example, read_rows
from selfkd.training import trainer
from selfkd.training.actor import LocalTrainer
from selfkd.training.base import TrainJob, TrainOptions
from selfkd.training.rounding import round_to_bfloat16

STEPS = 24
SETTINGS = {"kind": "forward_kl", "beta": 0.5, "temperature": 1.0, "teacher": "fixed"}
COUNTED = 96
"""Examples on which the divergence is measured."""

Change = Callable[[torch.nn.Module], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    base = resolve_model(yaml.safe_load((run / "run.yaml").read_text())["model"])
    teacher = sorted(run.glob("policies/round-*"))[-1]
    shards = sorted(run.glob("rounds/*/*-train/*.parquet"))
    examples = [e for shard in shards for e in read_rows(pq.read_table(shard), Example)]
    wanted = log_probs(teacher, examples[:COUNTED])

    def report(name: str, path: Path, change: Change = lambda model: None) -> None:
        got = log_probs(path, examples[:COUNTED], change)
        print(f"{name:48} {divergence(wanted, got):.4f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        start = stored_in_float32(base, Path(folder) / "start")
        print(f"{'weights':48} KL(teacher, policy), nats a token")
        report("base", base)
        exact = train(start, teacher, shards, Path(folder) / "exact", "float32")
        report("trained in float32", exact)
        report("  to the nearest bfloat16", exact, to_nearest)
        report("  rounded stochastically", exact, lambda model: round_to_bfloat16(model, 0))
        with autocast_alone():
            path = train(base, teacher, shards, Path(folder) / "nearest", "bfloat16")
        report("trained in bfloat16, seen to the nearest", path)
        path = train(base, teacher, shards, Path(folder) / "rounded", "bfloat16")
        report("trained in bfloat16, seen rounded stochastically", path)


def stored_in_float32(base: Path, out: Path) -> Path:
    """A copy of the base whose policies are stored in float32 too."""
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def train(start: Path, teacher: Path, shards: Sequence[Path], folder: Path, dtype: str) -> Path:
    """A policy after `STEPS` steps towards the teacher; all of them are stored alike otherwise."""
    out = folder / "policy"
    out.mkdir(parents=True)
    job = TrainJob(
        objective="gkd",
        objective_options=SETTINGS,
        example_files=tuple(map(str, shards)),
        start_path=str(start),
        out_dir=str(out),
        log_file=str(folder / "log.jsonl"),
        seed=0,
        options=TrainOptions.model_validate({"learning_rate": 2e-5, "dtype": dtype}),
        max_steps=STEPS,
        ref_path=str(teacher),
    )
    LocalTrainer().train(job)
    return out


@contextmanager
def autocast_alone() -> Iterator[None]:
    """Training in bfloat16 as it is without selfkd."""
    with patch.object(trainer, "RoundedSteps", lambda *_: TrainerCallback()):
        yield


def to_nearest(model: torch.nn.Module) -> None:
    model.to(torch.bfloat16).to(torch.float32)


@torch.no_grad()
def log_probs(
    path: Path, examples: Sequence[Example], change: Change = lambda model: None
) -> list[torch.Tensor]:
    """Log-probabilities at every place of each completion, in float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    change(model)
    found = []
    for e in examples:
        ids = torch.tensor([[*e.prompt_tokens, *e.completion_tokens]])
        found.append(model(ids).logits[0, len(e.prompt_tokens) - 1 : -1].log_softmax(-1))
    return found


def divergence(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Mean KL(wanted, got) over all places."""
    each = [(p.exp() * (p - q)).sum(-1) for p, q in zip(wanted, got, strict=True)]
    return torch.cat(each).mean().item()


if __name__ == "__main__":
    main()
