"""Runs a loop on the testbed through the real verbs, and returns its curve."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from selfkd import assembly
from selfkd.config import resolve
from selfkd.launch import execute, new_run
from selfkd.metrics import round_rows
from selfkd.progress import make_reporter
from tests.testbed.inprocess import InProcess

JUDGES = Path(__file__).with_name("judging.py")


def play(
    runs: Path, loop: str, model: Path, prompts: Path, heldout: Path, **settings: Any
) -> list[dict[str, Any]]:
    """The round rows of `loop` on the character model; `settings` are top-level config keys."""
    config: dict[str, Any] = {
        "loop": loop,
        "model": str(model),
        "prompts": {"source": str(prompts), "heldout_source": str(heldout), "fresh": False},
        "judge": f"{JUDGES}:right",
        "sampling": {"temperature": 1.0, "max_tokens": 40},
        "engine": {
            "kind": "transformers",
            "dtype": "float32",
            "max_num_seqs": 512,
            "max_model_len": 96,
        },
        "train": {"learning_rate": 5e-4, "batch_size": 32, "epochs": 3, "dtype": "float32"},
        "on_no_signal": "continue",
        "report_to": [],
    }
    resolved = resolve(config | settings)
    path = new_run(resolved, runs, None)
    with make_reporter(json_events=True) as reporter, patch.object(assembly, "Cluster", InProcess):
        execute(path, resolved, reporter)
    return round_rows(path)
