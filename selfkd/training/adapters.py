"""Policies stored as a LoRA adapter alone: PEFT's files, and what it takes to merge them again."""

import json
import shutil
from pathlib import Path
from typing import Any

from selfkd.training.base import TrainJob
from selfkd.training.checkpoints import cast, file_errors, load, save, tokenizer_files
from selfkd.training.rounding import round_to_bfloat16

MERGE = "merge.json"
"""{"dtype", "seed"}: how the merged weights are rounded, so that merging again gives the same."""


def save_adapter(model: Any, job: TrainJob, dtype: str) -> None:
    """Write the adapter of a PEFT model, and the start's tokenizer, to the job's directory."""
    out = Path(job.out_dir)
    with file_errors():
        model.save_pretrained(out)
    for file in tokenizer_files(job.start_path):
        shutil.copy(file, out / file.name)
    (out / MERGE).write_text(json.dumps({"dtype": dtype, "seed": job.seed}) + "\n")


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Write the model that `adapter` makes of the model in `base` to the new directory `out`."""
    from peft import PeftModel

    how = json.loads((adapter / MERGE).read_text())
    model: Any = PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload()
    if how["dtype"] == "bfloat16":
        round_to_bfloat16(model, how["seed"])
    staged = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save(model, cast(model, how["dtype"]), base, staged)
    staged.rename(out)
