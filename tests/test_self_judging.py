"""A run that judges itself, as the command line starts it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from selfkd.config import resolve
from selfkd.launch import execute, new_run
from selfkd.metrics import round_rows
from selfkd.progress import make_reporter
from tests.test_engine_judges import ANY_DIGIT


def test_a_run_judges_itself_records_its_judgements_and_takes_the_policy_it_is_told(
    tiny_model: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(f'{{"prompt": "{a}+{a}?", "answer": "{2 * a}"}}\n' for a in range(6))
    )
    config: dict[str, Any] = {
        "loop": "self_rewarding",
        "model": str(tiny_model),
        "prompts": {"source": str(prompts), "fresh": False, "heldout": 2},
        "judge": {"use": "self_reward", "draws": 2, "highest": 9, **ANY_DIGIT},
        "gold_judge": "number",
        "rounds": 1,
        "samples_per_prompt": 4,
        "sampling": {"temperature": 2.0, "max_tokens": 16},
        "engine": {"kind": "transformers", "dtype": "float32", "max_model_len": 128},
        "train": {"batch_size": 4, "epochs": 1, "dtype": "float32"},
        "on_no_signal": "continue",
        "gate": {"mode": "off"},
    }
    resolved = resolve(config)
    path = new_run(resolved, tmp_path / "runs", None)
    with make_reporter(json_events=True) as reporter:
        execute(path, resolved, reporter)
    first, last = round_rows(path)
    assert first["agreement"]["samples"] == 16 and first["extra"]["judgements"]["samples"] == 32
    (step,) = (path / "rounds" / "001").glob("*-generate-judgements")
    rows = pq.read_table(step / "00000.parquet").to_pylist()
    assert {r["policy"] for r in rows} == {last["policy"]}
    (samples,) = (path / "rounds" / "001").glob("??-generate")
    judged = {r["id"] for r in pq.read_table(samples / "00000.parquet").to_pylist()}
    assert {r["prompt_id"] for r in rows} == judged == {r["parents"][0] for r in rows}
    assert np.mean([len(r["tokens"]) for r in rows]) > 1
