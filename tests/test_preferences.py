"""DPO and KTO against their formulas in float64, and the reference policy against a copy of it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfkd.errors import UsageError
from selfkd.ledger import Ledger
from selfkd.objectives import DPO, KTO
from selfkd.policies import Policies
from selfkd.records import Example
from selfkd.training.actor import LocalTrainer
from selfkd.training.adapters import merge
from selfkd.training.collator import IGNORED
from selfkd.training.reference import TwinCollator
from selfkd.training.trainer import _load, _make_trainer
from tests.test_training import END, job, log_of, logprobs
from tests.testbed.addition import write_prompts
from tests.testbed.play import play

SIZES = [(5, 9, 4), (20, 3, 12), (11, 11, 2), (2, 30, 8)]
"""Tokens of prompt, chosen and rejected completion."""
DPO_PLAIN = {"beta": 0.3, "alpha": 0.0, "label_smoothing": 0.0}
KTO_PLAIN = {"beta": 0.3, "weight_desirable": 1.0, "weight_undesirable": 1.5}


def examples() -> list[Example]:
    """Four pairs of random tokens."""
    draw = torch.Generator().manual_seed(11)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 258, (count,), generator=draw).tolist())

    return [
        Example(f"e{i}", f"p{i}", (f"w{i}", f"l{i}"), some(p), (*some(c), END), (*some(r), END), w)
        for i, ((p, c, r), w) in enumerate(zip(SIZES, (1.0, 0.5, 2.0, 1.0), strict=True))
    ]


def unpaired() -> list[Example]:
    """The chosen completions of the first two pairs, the rejected ones of the others."""
    rows = examples()
    good = [replace(e, rejected_tokens=None) for e in rows[:2]]
    return good + [replace(e, completion_tokens=()) for e in rows[2:]]


def task(folder: Path, start: Path, rows: Sequence[Example], name: str, **options: Any) -> Any:
    settings = options.pop("settings", DPO_PLAIN if name == "dpo" else KTO_PLAIN)
    ref = options.pop("ref_path", None)
    made = job(folder, start, rows, **options)
    return replace(made, objective=name, objective_options=settings, ref_path=ref)


def logp(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Summed log-probability of a completion, in the model's own precision, one row at a time."""
    ids = torch.tensor([[*prompt, *completion]])
    log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    return log_probs[range(len(prompt) - 1, ids.shape[1] - 1), list(completion)].sum()


@pytest.fixture(scope="module")
def drifted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy a few steps away from `tiny_model`."""
    made = job(tmp_path_factory.mktemp("drift"), tiny_model, examples(), epochs=3)
    LocalTrainer().train(made)
    return Path(made.out_dir)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.3, "alpha": 0.0, "label_smoothing": 0.0},
        {"beta": 0.1, "alpha": 1.0, "label_smoothing": 0.2},
    ],
)
def test_the_loss_is_the_formula(
    tiny_model: Path, drifted: Path, tmp_path: Path, settings: dict[str, float]
) -> None:
    made = task(tmp_path, drifted, examples(), "dpo", settings=settings, ref_path=str(tiny_model))
    report = LocalTrainer().train(replace(made, max_steps=1))
    policy, ref = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64) for p in (drifted, tiny_model)
    )
    beta, alpha, smooth = settings["beta"], settings["alpha"], settings["label_smoothing"]
    total = weight = torch.tensor(0.0, dtype=torch.float64)
    with torch.no_grad():
        for e in examples():
            assert e.rejected_tokens
            chosen, rejected = (
                logp(policy, e.prompt_tokens, y) - logp(ref, e.prompt_tokens, y)
                for y in (e.completion_tokens, e.rejected_tokens)
            )
            p = torch.sigmoid(beta * (chosen - rejected))
            nll = -logp(policy, e.prompt_tokens, e.completion_tokens) / len(e.completion_tokens)
            loss = -(1 - smooth) * p.log() - smooth * (1 - p).log() + alpha * nll
            total, weight = total + e.weight * loss, weight + e.weight
    assert report.loss_first == pytest.approx(float(total / weight), rel=1e-5)


def test_a_policy_that_is_its_own_reference_starts_at_log_two(
    tiny_model: Path, tmp_path: Path
) -> None:
    made = task(tmp_path, tiny_model, examples(), "dpo", ref_path=str(tiny_model))
    report = LocalTrainer().train(made)
    first, *_, last = log_of(made)
    assert report.loss_first == pytest.approx(0.693147, abs=1e-4)
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    assert last["margin"] > 0.5 and last["accuracy"] == 1
    assert last["chosen_shift"] > last["rejected_shift"]
    assert last["rejected_logp"] < first["rejected_logp"]


def test_the_adapter_switched_off_is_the_reference(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)  # another path: a model of its own is loaded
    own = task(
        tmp_path / "own", tiny_model, examples(), "dpo", lora_rank=4, ref_path=str(tiny_model)
    )
    apart = task(tmp_path / "apart", tiny_model, examples(), "dpo", lora_rank=4, ref_path=str(copy))
    for made in (own, apart):
        LocalTrainer().train(made)
    assert [r["loss"] for r in log_of(own)] == pytest.approx(
        [r["loss"] for r in log_of(apart)], rel=1e-6
    )
    one, other = (load_file(Path(t.out_dir) / "model.safetensors") for t in (own, apart))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert log_of(own)[-1]["loss"] < 0.69


def test_the_reference_ignores_what_the_adapter_has_learnt(
    tiny_model: Path, tmp_path: Path
) -> None:
    made = task(tmp_path, tiny_model, examples(), "dpo", lora_rank=4, ref_path=str(tiny_model))
    model = _load(made)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = _make_trainer(model, tokenizer, examples(), made)
    start = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for row, e in zip(trainer.train_dataset, examples(), strict=True):
            assert e.rejected_tokens
            expected = [
                float(logp(start, e.prompt_tokens, y))
                for y in (e.completion_tokens, e.rejected_tokens)
            ]
            assert row["reference"] == pytest.approx(expected, abs=1e-3)


def test_only_completions_count_chosen_first() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 1], "prompt_length": 2, "twin_ids": [5, 6, 9], "twin_length": 2,
         "weight": 0.5, "reference": (-1.0, -2.0)},
        {"input_ids": [8, 1], "prompt_length": 1, "twin_ids": [8, 3, 3, 1], "twin_length": 1,
         "weight": 1.0, "reference": (-3.0, -4.0)},
    ]  # fmt: skip
    batch = TwinCollator(0)(rows)
    none = IGNORED
    assert batch["labels"].tolist() == [
        [none, none, 7, 1], [none, 1, none, none], [none, none, 9, none], [none, 3, 3, 1]
    ]  # fmt: skip
    assert batch["attention_mask"].sum(1).tolist() == [4, 2, 3, 4]
    assert batch["reference"].tolist() == [-1, -3, -2, -4]
    assert batch["weights"].tolist() == [0.5, 1, 0.5, 1]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_micro_batches_add_up_to_the_same_step(tiny_model: Path, tmp_path: Path, name: str) -> None:
    # One prompt is enough for KTO's reference point to be 0 in any micro-batch.
    rows = examples() if name == "dpo" else [replace(e, prompt_id="p") for e in unpaired()]
    options = {"epochs": 2, "ref_path": str(tiny_model)}
    whole = task(tmp_path / "whole", tiny_model, rows, name, **options)
    parts = task(tmp_path / "parts", tiny_model, rows, name, micro_batch_size=1, **options)
    for made in (whole, parts):
        LocalTrainer().train(made)
    for one, other in zip(log_of(whole), log_of(parts), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_one_example_and_a_batch_larger_than_the_set(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    rows = (examples() if name == "dpo" else unpaired())[:1]
    report = LocalTrainer().train(task(tmp_path, tiny_model, rows, name, ref_path=str(tiny_model)))
    assert (report.steps, report.examples) == (3, 1)
    assert report.loss_last < report.loss_first


def test_kto_is_the_formula(tiny_model: Path, drifted: Path, tmp_path: Path) -> None:
    made = task(tmp_path, drifted, unpaired(), "kto", ref_path=str(tiny_model))
    report = LocalTrainer().train(replace(made, max_steps=1))
    policy, ref = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64) for p in (drifted, tiny_model)
    )
    trainer = _make_trainer(_load(made), AutoTokenizer.from_pretrained(drifted), unpaired(), made)

    def ratio(ids: Sequence[int], start: int) -> float:
        prompt, completion = ids[:start], ids[start:]
        return float(logp(policy, prompt, completion) - logp(ref, prompt, completion))

    with torch.no_grad():
        rows = list(trainer.train_dataset)
        z = max(0.0, sum(ratio(r["twin_ids"], r["twin_length"]) for r in rows) / len(rows))
        total = weight = 0.0
        for row, e in zip(rows, unpaired(), strict=True):
            r = ratio(row["input_ids"], row["prompt_length"])
            side, scale = (1, 1.0) if e.rejected_tokens is None else (-1, 1.5)
            total += (
                e.weight
                * scale
                * (1 - 1 / (1 + float(torch.exp(torch.tensor(-0.3 * side * (r - z))))))
            )
            weight += e.weight
            assert row["twin_ids"][row["twin_length"] :] != row["input_ids"][row["prompt_length"] :]
    assert report.loss_first == pytest.approx(total / weight, rel=1e-5)


def test_kto_parts_the_desirable_from_the_others(tiny_model: Path, tmp_path: Path) -> None:
    made = task(tmp_path, tiny_model, unpaired(), "kto", epochs=6, ref_path=str(tiny_model))
    LocalTrainer().train(made)
    last = log_of(made)[-1]
    assert last["desirable_shift"] > 0.5 > -0.5 > last["undesirable_shift"]


UNPAIRED = """
from selfkd import KTO, LoopOptions, Run, everything, loop


@loop("unpaired")
def unpaired(run: Run, options: LoopOptions) -> None:
    for round in run.rounds(options.rounds):
        scored = round.judge(round.generate(run.prompts, n=4), run.judge)
        round.train(KTO(round.keep(scored, everything()), desirable=0.5))


def by_length(sample):
    return (0.0, 0.7, None)[len(sample.completion) % 3]
"""


def test_kto_trains_on_the_verdicts_of_a_round(tiny_model: Path, tmp_path: Path) -> None:
    """By a loop that ends with its training: nothing is measured, and no round comes after."""
    file = tmp_path / "mine.py"
    file.write_text(UNPAIRED)
    prompts, heldout = (
        write_prompts(tmp_path / name, sums)
        for name, sums in (("a.jsonl", [(i, 7) for i in range(6)]), ("b.jsonl", [(9, 9)]))
    )
    play(
        tmp_path / "runs", f"{file}:unpaired", tiny_model, prompts, heldout, rounds=1,
        judge=f"{file}:by_length", train={"learning_rate": 3e-3, "batch_size": 8, "epochs": 4},
    )  # fmt: skip
    (round,) = (tmp_path / "runs").glob("*/rounds/000")
    tables = {
        verb: pq.read_table(next(round.glob(f"??-{verb}/00000.parquet"))).to_pylist()
        for verb in ("generate", "judge", "train")
    }
    tokens = {row["id"]: row["tokens"] for row in tables["generate"]}
    rewards = {row["sample_id"]: row["reward"] for row in tables["judge"]}
    assert {*rewards.values()} == {0.0, 0.7, None}
    # What has no reward is not learnt from; of the rest one side or the other is empty.
    learnt = {row["sample_ids"][0]: row for row in tables["train"]}
    assert learnt.keys() == {id for id, reward in rewards.items() if reward is not None}
    for id, row in learnt.items():
        sides = (row["completion_tokens"], row["rejected_tokens"])
        assert sides == ((tokens[id], None) if rewards[id] == 0.7 else ([], tokens[id]))
    log = [json.loads(line) for line in next(round.glob("*-train/log.jsonl")).open()]
    assert log[-1]["desirable_shift"] > log[-1]["undesirable_shift"]
    trained = load_file(round.parents[1] / "policies" / "round-001" / "model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    assert any(not torch.equal(trained[name], base[name]) for name in base)


def test_settings_that_are_no_loss_are_refused() -> None:
    with pytest.raises(UsageError, match="beta > 0"):
        DPO(beta=0)
    with pytest.raises(UsageError, match="label_smoothing"):
        DPO(label_smoothing=0.5)
    with pytest.raises(UsageError, match="no negative weight"):
        KTO(weights=(1, -1))


def test_settings_cross_processes_as_plain_values() -> None:
    for objective in (DPO(alpha=1.0), KTO(weights=(1.0, 2.0))):
        assert json.loads(json.dumps(objective.settings())) == objective.settings()


def committed(task: Any, folder: Path, start: Path) -> tuple[Policies, Path]:
    """The policies of a run in `folder` whose round-1 is what `task` trained from the base."""
    (folder / "run.yaml").write_text("")
    policies = Policies(Ledger(folder), start, merge)
    made = replace(
        task,
        out_dir=str(policies.staging("round-1")),
        merged_dir=str(policies.staging_merged("round-1")),
    )
    report = LocalTrainer().train(made)
    policies.commit("round-1", "f", {"steps": 1}, [(list(t), list(e)) for t, e in report.canary])
    return policies, folder / "policies" / "round-001"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_alone_is_the_same_policy(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    # Large targets, so that the adapter makes a difference that rounding does not hide.
    options = {"lora_rank": 4, "epochs": 6, "dtype": dtype, "lora_save": "adapter"}
    made = task(
        tmp_path / "job", tiny_model, examples(), "dpo", ref_path=str(tiny_model), **options
    )
    _, stored = committed(made, tmp_path, tiny_model)
    assert (stored / "adapter_model.safetensors").exists()
    assert not list(stored.glob("model*.safetensors"))
    manifest = json.loads((stored / "MANIFEST.json").read_text())
    assert manifest["start"] == "base" and "adapter_model.safetensors" in manifest["files"]

    def merged_already(*paths: Path) -> None:
        raise AssertionError("the trainer wrote the whole model, nobody has to merge again")

    policies = Policies(Ledger(tmp_path), tiny_model, merged_already)
    policy = policies.get("round-1")  # as a sampler finds it
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, str(stored))
    limit = 1e-4 if dtype == "float32" else 0.1
    for tokens, expected in policy.canary:
        assert logprobs(policy.path, tokens) == pytest.approx(expected[1:], abs=1e-4)
        with torch.no_grad():
            found = peft(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        picked = found[range(len(tokens) - 1), tokens[1:]]
        assert float((picked - torch.tensor(expected[1:])).abs().mean()) < limit
    start = torch.tensor(logprobs(tiny_model, policy.canary[0][0]))
    assert float((start - torch.tensor(policy.canary[0][1][1:])).abs().mean()) > 2 * limit


def test_merged_copies_of_adapters_are_made_again_when_they_are_gone(
    tiny_model: Path, tmp_path: Path
) -> None:
    made = task(
        tmp_path / "job", tiny_model, examples(), "dpo", ref_path=str(tiny_model),
        lora_rank=4, lora_save="adapter",
    )  # fmt: skip
    policies, _ = committed(made, tmp_path, tiny_model)
    first = policies.get("round-1").path
    weights = load_file(first / "model.safetensors")
    shutil.rmtree(first)
    again = load_file(policies.get("round-1").path / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
