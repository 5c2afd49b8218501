"""The trainer against a plain loop in torch, on a tiny model."""

import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from selfkd.cluster import ANYWHERE, Cluster
from selfkd.errors import DataError, Diverged, InfrastructureError, UsageError
from selfkd.records import EXAMPLES, Example, rows_table
from selfkd.trainers import Trainers
from selfkd.training.actor import LocalTrainer
from selfkd.training.base import TrainJob, TrainOptions
from selfkd.training.collator import Collator
from selfkd.training.sft import SimilarLengths

END = 1
LENGTHS = [(5, 9), (20, 3), (11, 11), (2, 30), (8, 1), (16, 14)]
"""Tokens of prompt and completion."""


def examples() -> list[Example]:
    """Six examples of random tokens, of various lengths and weights."""
    draw = torch.Generator().manual_seed(7)
    rows = []
    for i, (prompt, completion) in enumerate(LENGTHS):
        tokens = torch.randint(2, 258, (prompt + completion,), generator=draw).tolist()
        tokens[-1] = END
        ids = (tuple(tokens[:prompt]), tuple(tokens[prompt:]))
        rows.append(Example(f"e{i}", f"p{i}", (f"s{i}",), *ids, weight=[1.0, 0.25, 2.0][i % 3]))
    return rows


def job(folder: Path, start: Path, rows: Sequence[Example], **options: object) -> TrainJob:
    """A job that writes to `folder`/policy; float32 and no warm-up unless `options` say more."""
    out = folder / "policy"
    out.mkdir(parents=True)
    pq.write_table(rows_table(rows, EXAMPLES), folder / "examples.parquet")
    plain = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 3, "dtype": "float32"}
    return TrainJob(
        objective="sft",
        objective_options={},
        example_files=(str(folder / "examples.parquet"),),
        start_path=str(start),
        out_dir=str(out),
        log_file=str(folder / "log.jsonl"),
        seed=3,
        options=TrainOptions.model_validate(plain | {"warmup_ratio": 0.0} | options),
    )


def log_of(task: TrainJob) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(task.log_file).read_text().splitlines()]


def logprobs(path: str | Path, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first, as transformers gives it in float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1]
    return logits.log_softmax(-1)[range(len(tokens) - 1), list(tokens[1:])].tolist()


def plain_loop(start: Path, rows: Sequence[Example], steps: int, rate: float) -> list[float]:
    """Losses of full-batch training, written down from the definition: one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = []
    for step in range(steps):
        total = torch.tensor(0.0)
        weight = 0.0
        for row in rows:
            ids = torch.tensor([*row.prompt_tokens, *row.completion_tokens])
            logits = model(ids[None]).logits[0]
            first = len(row.prompt_tokens)
            nll = cross_entropy(logits[first - 1 : -1], ids[first:], reduction="sum")
            total = total + row.weight * nll
            weight += row.weight * len(row.completion_tokens)
        loss = total / weight
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """One training of the six examples, full batch, three steps."""
    task = job(tmp_path_factory.mktemp("trained"), tiny_model, examples())
    return task, LocalTrainer().train(task)


def test_losses_equal_those_of_a_plain_loop(tiny_model: Path, trained: tuple) -> None:
    task, report = trained
    expected = plain_loop(tiny_model, examples(), steps=3, rate=1e-2)
    assert [row["loss"] for row in log_of(task)] == pytest.approx(expected, rel=1e-5)
    assert (report.loss_first, report.loss_last) == pytest.approx((expected[0], expected[-1]))
    assert expected[-1] < expected[0] - 0.5


def test_short_rows_are_trained_without_the_fused_kernel_where_that_is_slow(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Mock(wraps=modeling_llama.eager_attention_forward)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", plain)
    monkeypatch.setattr("selfkd.training.attention.trains_by_onednn", "bfloat16".__eq__)
    longest, losses = max(map(sum, LENGTHS)), []
    for limit, dtype in ((longest, "bfloat16"), (longest - 1, "bfloat16"), (longest, "float32")):
        monkeypatch.setattr("selfkd.training.attention.SHORT_ROW", limit)
        plain.reset_mock()
        report = LocalTrainer().train(
            job(tmp_path / f"{limit}{dtype}", tiny_model, examples(), dtype=dtype)
        )
        wanted = (limit, dtype) == (longest, "bfloat16")
        # Two layers, three steps: what is measured after the training is not meant.
        assert plain.call_count == (6 if wanted else 0)
        losses.append(report.loss_last)
    assert losses == pytest.approx([losses[-1]] * 3, rel=2e-2)


def test_the_log_says_what_each_step_did(trained: tuple) -> None:
    task, report = trained
    rows = log_of(task)
    once = sum(map(sum, LENGTHS))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["tokens"] for row in rows] == [once, 2 * once, 3 * once]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["total_steps"] == 3 and row["grad_norm"] > 0 for row in rows)
    assert (report.steps, report.examples, report.tokens) == (3, 6, 3 * once)


def test_the_saved_policy_is_the_trained_model(tiny_model: Path, trained: tuple) -> None:
    task, report = trained
    saved, start = load_file(Path(task.out_dir) / "model.safetensors"), Path(task.start_path)
    assert saved.keys() == load_file(start / "model.safetensors").keys()
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (Path(task.out_dir) / name).read_bytes() == (tiny_model / name).read_bytes()
    assert AutoTokenizer.from_pretrained(task.out_dir).eos_token_id == END
    (short, short_logprobs), (long, long_logprobs) = report.canary
    assert len(short) < 128 < len(long)
    assert logprobs(task.out_dir, short) == pytest.approx(short_logprobs[1:], abs=1e-4)
    assert logprobs(task.out_dir, long) == pytest.approx(long_logprobs[1:], abs=1e-4)
    before = torch.tensor(logprobs(start, short))
    assert (before - torch.tensor(short_logprobs[1:])).abs().mean() > 0.5


def test_a_policy_holds_what_its_start_holds_and_nothing_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(tiny_model, start)
    names = {p.name for p in tiny_model.iterdir()}
    # The tokenizer ends with another token than the config says, as in many chat models.
    config = json.loads((start / "config.json").read_text()) | {"eos_token_id": 7}
    (start / "config.json").write_text(json.dumps(config))
    for stray in ("README.md", "pytorch_model.bin", "training_args.bin", "MANIFEST.json"):
        (start / stray).write_text("stray")
    task = job(tmp_path / "job", start, examples(), epochs=1)
    LocalTrainer().train(task)
    assert {p.name for p in Path(task.out_dir).iterdir()} == names
    assert json.loads((Path(task.out_dir) / "config.json").read_text()) == config


def test_an_example_of_no_weight_teaches_nothing(tiny_model: Path, tmp_path: Path) -> None:
    kept = examples()[:4]
    mute = [replace(e, weight=0.0) for e in examples()[4:]]
    tasks = [
        job(tmp_path / "few", tiny_model, kept),
        job(tmp_path / "all", tiny_model, kept + mute),
    ]
    for task in tasks:
        LocalTrainer().train(task)
    few, everything = (load_file(Path(t.out_dir) / "model.safetensors") for t in tasks)
    for name, weight in few.items():
        torch.testing.assert_close(everything[name], weight, atol=1e-3, rtol=1e-3)


def test_the_next_round_starts_from_the_saved_policy(trained: tuple, tmp_path: Path) -> None:
    first, _ = trained
    second = job(tmp_path, Path(first.out_dir), examples())
    report = LocalTrainer().train(second)
    assert report.loss_first == pytest.approx(
        plain_loop(Path(first.out_dir), examples(), steps=1, rate=1e-2)[0], rel=1e-5
    )


@pytest.mark.parametrize("batch_size", [8, 4])
def test_micro_batches_add_up_to_the_same_step(
    tiny_model: Path, tmp_path: Path, batch_size: int
) -> None:
    options = {"batch_size": batch_size, "epochs": 2}
    whole = job(tmp_path / "whole", tiny_model, examples(), **options)
    parts = job(tmp_path / "parts", tiny_model, examples(), micro_batch_size=2, **options)
    assert LocalTrainer().train(whole).steps == LocalTrainer().train(parts).steps
    losses = [[row["loss"] for row in log_of(t)] for t in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, other = (load_file(Path(t.out_dir) / "model.safetensors") for t in (whole, parts))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-3, rtol=1e-3)


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValidationError, match="micro_batch_size"):
        TrainOptions.model_validate({"batch_size": 16, "micro_batch_size": 5})


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}])
def test_a_model_that_is_still_in_memory_trains_as_one_read_from_disk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    first = job(tmp_path / "first", tiny_model, examples(), dtype="bfloat16", **options)
    warm = LocalTrainer()
    warm.train(first)
    stored = Path(first.out_dir).rename(tmp_path / "committed")
    losses = []
    for name, trainer in (("cold", LocalTrainer()), ("warm", warm)):
        if trainer is warm:
            monkeypatch.delattr("selfkd.training.trainer.load")
        second = job(tmp_path / name, stored, examples(), dtype="bfloat16", **options)
        trainer.train(second)
        losses.append([row["loss"] for row in log_of(second)])
    assert losses[0] == losses[1]


def test_an_adapter_is_merged_into_the_policy(tiny_model: Path, tmp_path: Path) -> None:
    task = job(tmp_path, tiny_model, examples(), lora_rank=4)
    report = LocalTrainer().train(task)
    start = load_file(tiny_model / "model.safetensors")
    saved = load_file(Path(task.out_dir) / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], saved[name])}
    assert saved.keys() == start.keys()
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "model.embed_tokens.weight" not in changed
    assert not list(Path(task.out_dir).glob("adapter*"))
    assert report.loss_last < report.loss_first
    for tokens, expected in report.canary:
        assert logprobs(task.out_dir, tokens) == pytest.approx(expected[1:], abs=1e-4)


def test_bfloat16_trains_as_float32_does_and_is_stored_so(
    tiny_model: Path, trained: tuple, tmp_path: Path
) -> None:
    task = job(tmp_path, tiny_model, examples(), dtype="bfloat16")
    report = LocalTrainer().train(task)
    assert report.loss_first == pytest.approx(trained[1].loss_first, rel=0.02)
    assert report.loss_last == pytest.approx(trained[1].loss_last, rel=0.05)
    saved = load_file(Path(task.out_dir) / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    for tokens, expected in report.canary:
        assert logprobs(task.out_dir, tokens) == pytest.approx(expected[1:], abs=1e-4)


def test_bfloat16_sees_steps_that_are_too_small_for_it(tiny_model: Path, tmp_path: Path) -> None:
    # From bfloat16 weights, by steps that rounding to the nearest would undo in every forward pass.
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(
        shutil.copytree(tiny_model, tmp_path / "start")
    )
    gained = {}
    for dtype in ("float32", "bfloat16"):
        task = job(
            tmp_path / dtype, tmp_path / "start", examples(), dtype=dtype,
            epochs=12, batch_size=len(examples()), learning_rate=2e-5,
        )  # fmt: skip
        report = LocalTrainer().train(task)
        gained[dtype] = report.loss_first - report.loss_last
    assert gained["bfloat16"] == pytest.approx(gained["float32"], rel=0.1)


def test_a_bfloat16_start_gives_a_bfloat16_policy(tiny_model: Path, tmp_path: Path) -> None:
    # In float32 a bfloat16 sampler would round it back to where it started.
    shutil.copytree(tiny_model, tmp_path / "start")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "start")
    task = job(tmp_path / "job", tmp_path / "start", examples(), dtype="float32", epochs=1)
    LocalTrainer().train(task)
    saved = load_file(Path(task.out_dir) / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert json.loads((Path(task.out_dir) / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("micro", [None, 2])
def test_one_example_and_a_batch_larger_than_the_set(
    tiny_model: Path, tmp_path: Path, micro: int | None
) -> None:
    task = job(tmp_path, tiny_model, examples()[:1], epochs=2, micro_batch_size=micro)
    report = LocalTrainer().train(task)
    assert (report.steps, report.examples, report.tokens) == (2, 1, 2 * sum(LENGTHS[0]))
    assert report.loss_last < report.loss_first


def test_steps_override_epochs(tiny_model: Path, tmp_path: Path) -> None:
    task = job(tmp_path, tiny_model, examples(), batch_size=4)
    report = LocalTrainer().train(replace(task, max_steps=5))
    assert report.steps == 5
    assert [row["total_steps"] for row in log_of(task)] == [5] * 5
    assert log_of(task)[-1]["epoch"] > 2


def test_a_loss_that_is_not_finite_ends_the_training_unsaved(
    tiny_model: Path, tmp_path: Path
) -> None:
    task = job(tmp_path, tiny_model, examples(), learning_rate=1e30)
    with pytest.raises(Diverged, match=r"at step [23]\b"):
        LocalTrainer().train(task)
    assert not list(Path(task.out_dir).iterdir())
    assert all(math.isfinite(row["loss"]) for row in log_of(task))


def test_a_policy_that_is_not_finite_is_not_saved(tiny_model: Path, tmp_path: Path) -> None:
    task = replace(job(tmp_path, tiny_model, examples(), learning_rate=1e39), max_steps=1)
    with pytest.raises(Diverged, match="not finite"):
        LocalTrainer().train(task)
    assert math.isfinite(log_of(task)[0]["loss"])
    assert not list(Path(task.out_dir).iterdir())


def test_a_broken_start_is_noticed_in_the_first_step(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="loss is nan at step 1"):
        LocalTrainer().train(job(tmp_path, tmp_path / "broken", examples()))


def test_want_of_memory_is_told_with_what_to_do(tiny_model: Path, tmp_path: Path) -> None:
    long = [Example(f"e{i}", "p", ("s",), (5,) * 9, (7,) * (15000 + i)) for i in range(8)]
    task = job(tmp_path, tiny_model, long)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    former = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 700 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, former[1]))
    try:
        with pytest.raises(InfrastructureError, match="no more memory") as caught:
            LocalTrainer().train(task)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)
    assert "micro_batch_size" in caught.value.remedy and caught.value.exit_code == 5
    assert not list(Path(task.out_dir).iterdir())


def test_a_tokenizer_is_read_again_only_when_its_files_change(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Mock(wraps=AutoTokenizer.from_pretrained)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", read)
    trainer = LocalTrainer()
    first = job(tmp_path / "1", tiny_model, examples())
    trainer.train(first)
    trainer.train(job(tmp_path / "2", Path(first.out_dir), examples()))
    assert read.call_count == 1
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    told = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": 99}))
    trainer.train(job(tmp_path / "3", other, examples()))
    assert read.call_count == 2


def test_a_killed_trainer_is_told_as_want_of_memory_and_not_started_again(
    cluster: Cluster, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "timeout", 300)  # its imports take long on a busy machine
    starts = tmp_path / "starts"

    class Noted(LocalTrainer):
        def __init__(self) -> None:
            with starts.open("a") as file:
                file.write(f"{os.getpid()}\n")
            super().__init__()

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 1:  # as the system does where memory runs out
            os.kill(int(starts.read_text()), signal.SIGKILL)

    def once() -> None:
        assert not starts.exists() or len(starts.read_text().splitlines()) <= 1

    endless = replace(job(tmp_path, tiny_model, examples()), max_steps=100_000)
    trainers = Trainers(cluster, ANYWHERE, workers=1, check=once, actor=Noted)
    try:
        with pytest.raises(InfrastructureError, match="was killed, likely for lack of mem") as told:
            trainers.train(endless, kill)
    finally:
        trainers.close()
    assert (told.value.where, told.value.exit_code) == ("train", 5)
    for key in ("micro_batch_size", "sampling.max_tokens", "train.dtype", "train.lora_rank"):
        assert key in told.value.remedy
    once()
    assert not list(Path(endless.out_dir).iterdir())


def test_a_process_that_trains_loads_no_vllm(tiny_model: Path, tmp_path: Path) -> None:
    task = job(tmp_path, tiny_model, examples())
    (tmp_path / "job").write_bytes(pickle.dumps(task))
    code = """
import pickle, sys
from pathlib import Path
from selfkd.training.actor import LocalTrainer

LocalTrainer().train(pickle.loads(Path(sys.argv[1]).read_bytes()))
print([name for name in sys.modules if name.partition(".")[0].startswith("vllm")])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(log_of(task)) == 3
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_empty_set_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no example"):
        LocalTrainer().train(job(tmp_path, tiny_model, []))


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(tiny_model / "model.safetensors")
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickle"):
        LocalTrainer().train(job(tmp_path, tmp_path / "old", examples()))


def test_a_generation_config_that_transformers_would_not_save_is_kept(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "start")
    file = tmp_path / "start" / "generation_config.json"
    text = json.dumps({"eos_token_id": END, "do_sample": False, "temperature": 0.6})
    file.write_text(text)
    task = job(tmp_path, tmp_path / "start", examples(), epochs=1)
    LocalTrainer().train(task)
    assert (Path(task.out_dir) / "generation_config.json").read_text() == text


def test_the_same_seed_trains_the_same_policy(tiny_model: Path, tmp_path: Path) -> None:
    tasks = [
        replace(job(tmp_path / name, tiny_model, examples(), batch_size=2), seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for task in tasks:
        LocalTrainer().train(task)
    assert log_of(tasks[0]) == log_of(tasks[1]) != log_of(tasks[2])
    one, same, other = (load_file(Path(t.out_dir) / "model.safetensors") for t in tasks)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.norm.weight"], other["model.norm.weight"])


def test_only_completions_are_labelled() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 1], "prompt_length": 2, "weight": 1.0},
        {"input_ids": [8, 1], "prompt_length": 1, "weight": 0.5},
    ]
    batch = Collator(pad_token_id=1)(rows)
    assert batch["labels"].tolist() == [[-100, -100, 7, 1], [-100, 1, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_batches_hold_similar_lengths_in_another_order_each_epoch() -> None:
    lengths = torch.randint(20, 200, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = SimilarLengths(lengths, batch_size=16, seed=5)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(203))
    assert first != second
    assert first == list(SimilarLengths(lengths, batch_size=16, seed=5))
    batches = [[lengths[i] for i in first[k : k + 16]] for k in range(0, 203, 16)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert sum(lengths) / padded > 0.9
    assert [len(batch) for batch in batches] == [16] * 12 + [11]


def test_chance_decides_what_is_in_the_short_batch() -> None:
    sampler = SimilarLengths(range(10), batch_size=4, seed=0)
    assert len({tuple(sorted(list(sampler)[-2:])) for _ in range(30)}) > 10


def test_batches_are_not_sorted_where_padding_is_small() -> None:
    # Lengths of 100 to 104 pad by at most 4 %: short and long ones must meet in one batch.
    lengths = [100 + i % 5 for i in range(64)]
    order = list(SimilarLengths(lengths, batch_size=16, seed=0))
    batches = [{lengths[i] for i in order[k : k + 16]} for k in range(0, 64, 16)]
    assert all(len(batch) >= 4 for batch in batches)
