"""The demo in small: a real pretrained model, real vLLM, a real Ray cluster, TRL, real prompts."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

LOOPS = Path(__file__).parents[2] / "loops"

pytestmark = pytest.mark.lengthy


def selfkd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfkd", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A folder with one finished run of ReST-EM, `runs/demo`."""
    folder = tmp_path_factory.mktemp("demo")
    done = selfkd(
        folder, "run", str(LOOPS / "rest_em.yaml"), "--name", "demo", f"model={smollm2}",
        "rounds=1", "prompts.per_round=16", "samples_per_prompt=4", "prompts.heldout=8",
        "engine.kind=vllm", "sampling.max_tokens=40",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "selfkd show" in done.stdout and "runs/demo" in done.stdout
    return folder


def test_the_curve_holds_what_was_sampled_judged_and_trained(demo):
    document = json.loads(selfkd(demo, "curves", "runs/demo", "--json").stdout)
    base, trained = document["rounds"]
    assert (document["run"], document["state"]) == ("demo", "finished")
    assert (base["policy"], trained["policy"]) == ("base", "round-1")
    assert base["samples"] == base["scored"] == trained["samples"] == 16 * 4
    # The base is right on some of these sums and far from most; 0 or 1 would mean a broken judge.
    assert 0.01 < base["reward_mean"] < 0.4
    assert base["heldout_scored"] == trained["heldout_scored"] == 8
    assert base["kept"] == base["train"]["examples"] > 0
    assert base["kept"] + sum(base["dropped"].values()) == 64
    assert base["train"]["steps"] > 0 and trained["train"] is None
    assert (base["kl_base"], base["kl_previous"]) == (0.0, None)
    assert 0.001 < trained["kl_base"] == trained["kl_previous"] < 5
    assert base["pass_at_k"]["1"] == pytest.approx(base["reward_mean"])
    assert base["pass_at_k"]["4"] >= base["pass_at_k"]["2"] >= base["pass_at_k"]["1"]


def test_tensorboard_was_told_as_the_run_went_on(demo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = demo / "runs" / "demo"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(e.step, e.value) for e in events.Scalars("round/heldout_reward")]
    assert found == [(r["round"], pytest.approx(r["heldout_reward"])) for r in rows]


def test_samples_carry_their_policy_and_end_as_the_model_ended_them(demo):
    run = demo / "runs" / "demo"
    for round, policy in ((0, "base"), (1, "round-1")):
        files = sorted(run.glob(f"rounds/{round:03d}/*-generate/*.parquet"))
        rows = [row for f in files for row in pq.read_table(f).to_pylist()]
        assert {row["policy"] for row in rows} == {policy}
        end = 2  # <|im_end|>
        assert all((row["tokens"][-1] == end) == (row["finish"] == "stop") for row in rows)
        assert all(len(row["tokens"]) == 40 for row in rows if row["finish"] == "length")
        assert all("<|im_end|>" not in row["completion"] for row in rows)


def test_examples_are_the_kept_samples_token_by_token(demo):
    run = demo / "runs" / "demo"

    def rows(pattern: str) -> list[dict[str, object]]:
        return [r for f in sorted(run.glob(pattern)) for r in pq.read_table(f).to_pylist()]

    samples = {r["id"]: r for r in rows("rounds/000/*-generate/*.parquet")}
    kept = {r["sample_id"] for r in rows("rounds/000/*-keep/*.parquet") if r["kept"]}
    examples = rows("rounds/000/*-train/*.parquet")
    assert {e["sample_ids"][0] for e in examples} == kept  # type: ignore[index]
    for example in examples:
        (sample,) = example["sample_ids"]  # type: ignore[misc]
        assert example["completion_tokens"] == samples[sample]["tokens"]


def test_show_prints_dropped_samples_with_reasons(demo):
    rows = json.loads(
        selfkd(demo, "show", "demo", "--round", "0", "--dropped", "--limit", "5", "--json").stdout
    )
    assert len(rows) == 5
    assert all(r["kept"] is False and r["reason"] != "kept" for r in rows)
    assert all(r["prompt"] and r["answer"] is not None for r in rows)


def test_the_policy_is_a_plain_model_directory(demo):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo / "runs" / "demo" / "policies" / "round-001"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.chat_template
    manifest = json.loads((path / "MANIFEST.json").read_text())
    tokens, expected = manifest["canary"][0]
    ids = torch.tensor([tokens])
    found = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    assert torch.allclose(found, torch.tensor(expected[1:]), atol=1e-3)
    assert not list(path.glob("*.bin"))
