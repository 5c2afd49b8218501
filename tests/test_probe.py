"""How far a policy has moved: measured on fixed texts, from the base and from the policy before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfkd.metrics import round_rows
from selfkd.probe import TEXTS, TOKENS, probe_texts
from selfkd.training.actor import LocalTrainer
from selfkd.training.base import Probe, Text, TrainJob
from selfkd.training.probe import _log_probs
from tests.synthetic import generate, make_samples, measure, new_run, prompts
from tests.test_training import examples, job

TEXT = (Text((5, 6, 7), (10, 11, 12, 13)), Text((9,), (20,)))
ENDS = [((8,), (10, 11)), ((9, 4), (20,)), ((8,), (3, 12, 13))]
"""Ends of prompts that begin alike, and completions."""


def log_probs(path: Path, texts: tuple[Text, ...] = TEXT) -> torch.Tensor:
    """Of the whole vocabulary at each token of the texts' completions, in float64."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    rows = []
    for text in texts:
        ids = torch.tensor([[*text.prompt_tokens, *text.completion_tokens]])
        with torch.no_grad():
            said = model(ids).logits[0].double().log_softmax(-1)
        rows.append(said[len(text.prompt_tokens) - 1 : -1])
    return torch.cat(rows)


def in_buckets(policy: torch.Tensor, other: torch.Tensor, base: torch.Tensor) -> float:
    """KL(policy || other) over the base's 64 likeliest tokens and the rest, by the definition."""
    ids = base.topk(64).indices
    q, p = (
        torch.cat([s.exp().gather(1, ids), 1 - s.exp().gather(1, ids).sum(1, keepdim=True)], 1)
        for s in (policy, other)
    )
    return (q * (q / p).log()).sum(1).mean().item()


def probing(
    asked: TrainJob, *, previous: Path | None, from_base: bool = False, texts=TEXT
) -> TrainJob:
    file = str(previous / "probe.state") if previous else None
    probe = Probe(texts, from_base, file, f"{asked.out_dir}/probe.state")
    return replace(asked, probe=probe)


@pytest.fixture(scope="module")
def first(tiny_model, tmp_path_factory):
    """A policy trained from the base, with its report."""
    folder = tmp_path_factory.mktemp("first")
    asked = probing(job(folder, tiny_model, examples()), previous=None, from_base=True)
    return folder / "policy", LocalTrainer().train(asked)


def test_distances_are_those_of_the_stored_weights(tiny_model, first, tmp_path):
    path, report = first
    base, one = log_probs(tiny_model), log_probs(path)
    assert report.kl_base == report.kl_previous == pytest.approx(in_buckets(one, base, base), 1e-3)
    whole = (one.exp() * (one - base)).sum(1).mean().item()
    assert 0.01 < report.kl_base <= whole

    asked = probing(job(tmp_path, path, examples()), previous=path)
    report = LocalTrainer().train(asked)
    two = log_probs(tmp_path / "policy")
    assert report.kl_base == pytest.approx(in_buckets(two, base, base), 1e-3)
    assert report.kl_previous == pytest.approx(in_buckets(two, one, base), 1e-3)


def test_a_training_from_the_base_again_is_compared_with_the_round_before(
    tiny_model, first, tmp_path
):
    path, _ = first
    asked = job(tmp_path, tiny_model, examples(), learning_rate=1e-3)
    report = LocalTrainer().train(probing(asked, previous=path, from_base=True))
    base, one, other = (log_probs(p) for p in (tiny_model, path, tmp_path / "policy"))
    assert report.kl_base == pytest.approx(in_buckets(other, base, base), 1e-3)
    assert report.kl_previous == pytest.approx(in_buckets(other, one, base), 1e-3)


def test_what_is_not_known_is_not_made_up(tiny_model, first, tmp_path):
    path, _ = first
    trainer = LocalTrainer()
    asked = job(tmp_path / "gone", path, examples())
    report = trainer.train(probing(asked, previous=tmp_path / "nowhere"))
    assert (report.kl_base, report.kl_previous) == (None, None)
    asked = job(tmp_path / "others", tiny_model, examples())
    report = trainer.train(probing(asked, previous=path, from_base=True, texts=TEXT[:1]))
    assert report.kl_base and report.kl_previous is None  # its record is of other texts
    report = trainer.train(job(tmp_path / "unasked", tiny_model, examples()))
    assert (report.kl_base, report.kl_previous) == (None, None)


def test_what_all_prompts_begin_with_is_read_once(tiny_model):
    texts = tuple(Text((5, 6, 7, *rest), said) for rest, said in ENDS)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    read: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0].numel())
    )
    found = torch.cat(list(_log_probs(model, texts)))
    assert torch.allclose(found.double(), log_probs(tiny_model, texts), atol=1e-5)
    assert read == [3, 3 * 4]  # the longest of the three rows has four tokens left


def test_texts_are_the_bases_first_answers_one_a_prompt(tmp_path):
    ledger = new_run(tmp_path / "run")
    assert probe_texts(ledger.path) == ()
    asked = prompts(TEXTS + 4)
    long = [7] * (TOKENS + 9)
    own = [(asked[0], []), *((p, long) for p in asked for _ in range(2))]
    generate(ledger, 0, make_samples(0, own))
    tokens = {p.id: tuple(range(len(p.text))) for p in asked}
    found = probe_texts(ledger.path)
    assert found == ()  # prompts were recorded without tokens
    for path in (ledger.path / "rounds/000").glob("*-prompts/*.parquet"):
        _with_tokens(path, tokens)
    found = probe_texts(ledger.path)
    assert [t.prompt_tokens for t in found] == [tokens[p.id] for p in asked[:TEXTS]]
    assert {t.completion_tokens for t in found} == {(7,) * TOKENS}


def _with_tokens(path: Path, tokens: dict[str, tuple[int, ...]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = pa.array([tokens[id] for id in table["id"].to_pylist()], pa.list_(pa.int32()))
    pq.write_table(table.set_column(table.schema.get_field_index("tokens"), "tokens", column), path)


def test_a_round_has_the_distances_of_its_own_policy(tmp_path):
    ledger = new_run(tmp_path / "run")

    def trained(round: int, policy: str, *distances: float | None) -> None:
        step = ledger.step(round, "train", "", {})
        kl = dict(zip(("kl_base", "kl_previous"), distances, strict=True))
        step.finish(
            {"policy": policy, "start": "base", "steps": 3, "examples": 2, **kl}, seconds=1.0
        )

    for round in range(4):
        if round != 2:
            generate(ledger, round, make_samples(round, [(p, [1, 0]) for p in prompts(2)]))
        else:  # what round 1 made was rolled back: round 2 samples from round-1 again
            again = [replace(s, policy="round-1") for s in make_samples(2, [(prompts(1)[0], [1])])]
            generate(ledger, 2, again)
            args = ledger.path / "rounds/002/02-generate/step.json"
            args.write_text(args.read_text().replace("round-2", "round-1"))
        measure(ledger, round, [1.0, 0.0])
        trained(round, f"round-{round + 1}", 0.1 * (round + 1), 0.05)
    found = [(r["policy"], r["kl_base"], r["kl_previous"]) for r in round_rows(ledger.path)]
    assert found == [
        ("base", 0.0, None),
        ("round-1", 0.1, 0.05),
        ("round-1", 0.1, 0.0),
        ("round-3", pytest.approx(0.3), 0.05),
    ]
