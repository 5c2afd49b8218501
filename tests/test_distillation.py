"""Distillation against formulas in float64, with every kind of teacher, on a tiny model."""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from selfkd.distillation import GKD
from selfkd.errors import DataError, UsageError
from selfkd.records import Example
from selfkd.sampling.weights import same_architecture
from selfkd.training import teachers
from selfkd.training.actor import LocalTrainer
from selfkd.training.base import StatesFiles, Stretch
from selfkd.training.gkd import DistilCollator, _row
from selfkd.training.hidden import check_head, hidden_states
from selfkd.training.rounding import Rounding
from selfkd.training.trainer import _load, _make_trainer
from tests.test_doctor import flip_a_bit
from tests.test_training import END, job, log_of

SIZES = [(5, 9), (20, 3), (11, 11), (2, 30), (8, 1), (16, 14)]
PLAIN = {"kind": "jsd", "beta": 0.5, "temperature": 1.0, "ema_decay": 0.9}


def examples(privileged: bool = False) -> list[Example]:
    """Six examples of random tokens with weights; the teacher may see a longer prompt."""
    draw = torch.Generator().manual_seed(5)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 258, (count,), generator=draw).tolist())

    rows = []
    for i, (prompt, completion) in enumerate(SIZES):
        seen, tokens, more = some(prompt), (*some(completion), END), some(4 + i)
        rows.append(
            Example(
                f"e{i}", f"p{i}", (f"s{i}",), seen, tokens, weight=[1.0, 0.25, 2.0][i % 3],
                token_weights=(0.0, *(1.0,) * completion) if i == 3 else None,
                teacher_prompt_tokens=(*more, *seen) if privileged else None,
            )
        )  # fmt: skip
    return rows


def task(folder: Path, start: Path, rows: Sequence[Example], teacher: str, **options: Any) -> Any:
    settings = PLAIN | {"teacher": teacher} | options.pop("settings", {})
    ref = options.pop("ref_path", None)
    made = job(folder, start, rows, **options)
    return replace(made, objective="gkd", objective_options=settings, ref_path=ref)


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy some steps away from `tiny_model`."""
    made = job(tmp_path_factory.mktemp("other"), tiny_model, examples(), epochs=4)
    LocalTrainer().train(made)
    return Path(made.out_dir)


def logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of every next token at each place of the completion."""
    ids = torch.tensor([[*prompt, *completion]])
    return model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def jsd(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    m = (p.exp() + q.exp()).log() - torch.tensor(2.0).log()
    return 0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1))


def expected(student: Any, teacher: Any, rows: Sequence[Example]) -> torch.Tensor:
    """The loss of a step over all rows, from the definition."""
    total, weight = torch.tensor(0.0, dtype=torch.float64), 0.0
    for e in rows:
        seen = e.teacher_prompt_tokens or e.prompt_tokens
        with torch.no_grad():
            p = logprobs(teacher, seen, e.completion_tokens)
        q = logprobs(student, e.prompt_tokens, e.completion_tokens)
        each = torch.tensor(e.token_weights or (1.0,) * len(e.completion_tokens)) * e.weight
        total = total + (each * jsd(p, q)).sum()
        weight += float(each.sum())
    return total / weight


def double(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)


@pytest.mark.parametrize("privileged", [False, True])
def test_the_loss_is_the_formula(tiny_model, other, tmp_path, privileged) -> None:
    rows = examples(privileged)
    made = task(tmp_path, tiny_model, rows, "teacher", ref_path=str(other), epochs=1)
    report = LocalTrainer().train(made)
    value = float(expected(double(tiny_model), double(other), rows))
    assert report.loss_first == pytest.approx(value, rel=1e-5)
    assert value > 0.01


def test_losses_equal_those_of_a_plain_loop(tiny_model, other, tmp_path) -> None:
    made = task(tmp_path, tiny_model, examples(True), "teacher", ref_path=str(other))
    LocalTrainer().train(made)
    student, teacher = double(tiny_model), double(other)
    optimiser = torch.optim.AdamW(student.parameters(), weight_decay=0.0)
    losses = []
    for step in range(3):
        loss = expected(student, teacher, examples(True))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 3)
        optimiser.step()
        losses.append(loss.item())
    assert [row["loss"] for row in log_of(made)] == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"lora_rank": 4, "dtype": "bfloat16"}])
@pytest.mark.parametrize("teacher", ["teacher", "ema"])
def test_micro_batches_do_not_change_the_step(
    tiny_model, other, tmp_path, options, teacher
) -> None:
    logs = []
    for size in (6, 2):
        made = task(
            tmp_path / str(size), tiny_model, examples(True), teacher, ref_path=str(other),
            batch_size=6, micro_batch_size=size, epochs=2, **options,
        )  # fmt: skip
        LocalTrainer().train(made)
        logs.append([(r["loss"], r["grad_norm"], r["teacher_entropy"]) for r in log_of(made)])
    close = 2e-2 if options.get("dtype") else 1e-4
    for row, whole in zip(*logs, strict=True):
        assert row == pytest.approx(whole, rel=close)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the trainer always recomputes")
def test_checkpointing_gives_the_same_gradients(tiny_model, other, tmp_path) -> None:
    logs = []
    for on in (False, True):
        made = task(
            tmp_path / str(on), tiny_model, examples(True), "teacher", ref_path=str(other),
            lora_rank=4, epochs=2,
        )  # fmt: skip
        model = _load(made)
        if on:
            model.gradient_checkpointing_enable()
        trainer = _make_trainer(
            model, AutoTokenizer.from_pretrained(tiny_model), examples(True), made
        )
        trainer.train()
        assert model.is_gradient_checkpointing is on
        logs.append([(row["loss"], row["grad_norm"]) for row in log_of(made)])
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-5)
    assert logs[0][1] == pytest.approx(logs[1][1], rel=1e-4)


def test_a_teacher_that_is_the_start_costs_no_second_model(
    tiny_model, tmp_path, monkeypatch
) -> None:
    apart = tmp_path / "copy"
    shutil.copytree(tiny_model, apart)  # another path: a model of its own is loaded
    loaded = []
    plain = teachers.load
    monkeypatch.setattr(teachers, "load", lambda path: loaded.append(path) or plain(path))
    logs = []
    for name, ref in (("own", tiny_model), ("apart", apart)):
        for rank in (0, 4):
            made = task(
                tmp_path / f"{name}{rank}", tiny_model, examples(True), "base", ref_path=str(ref),
                lora_rank=rank, batch_size=4,
            )  # fmt: skip
            LocalTrainer().train(made)
            logs.append([r["loss"] for r in log_of(made)])
    assert loaded == [str(apart)] * 2
    assert logs[0] == pytest.approx(logs[2], rel=1e-5)
    assert logs[1] == pytest.approx(logs[3], rel=1e-5)
    assert logs[0][-1] < logs[0][0]


def test_kept_states_are_not_asked_for_again(tiny_model, other, tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    plain = teachers._silent
    monkeypatch.setattr(
        teachers, "_silent", lambda m, b: seen.append(len(b["input_ids"])) or plain(m, b)
    )
    rows = examples(True)

    def trained(
        name: str, some: Sequence[Example], known: Sequence[str] = (), **more: Any
    ) -> tuple[list[float], int | None, str]:
        made = task(tmp_path / name, tiny_model, some, "base", ref_path=str(other), **more)
        out = tmp_path / f"{name}.parquet"
        report = LocalTrainer().train(replace(made, states=StatesFiles(tuple(known), str(out))))
        return [r["loss"] for r in log_of(made)], report.teacher_asked, str(out)

    plainly = task(tmp_path / "plain", tiny_model, rows, "base", ref_path=str(other))
    assert LocalTrainer().train(plainly).teacher_asked == 6
    losses = [r["loss"] for r in log_of(plainly)]
    seen.clear()
    first = trained("first", rows)
    assert first[:2] == (losses, 6)
    again = trained("again", rows, [first[2]])  # as a training does that was interrupted
    assert again[:2] == (losses, 0) and not Path(again[2]).exists()
    assert sum(seen) == 6

    longer = replace(rows[1], prompt_tokens=(*rows[1].prompt_tokens, 5))  # all the same to it
    other_view = replace(rows[0], teacher_prompt_tokens=rows[1].teacher_prompt_tokens)
    some = [other_view, longer, rows[3], rows[2], rows[2]]
    part = trained("part", some, [first[2]])
    assert part[1] == 1 and trained("more", some, [first[2], part[2]])[:2] == (part[0], 0)
    assert part[0] == pytest.approx(trained("alone", some)[0], rel=1e-5)
    half = trained("half", rows, [first[2]], dtype="bfloat16")
    assert half[1] == 6  # what was computed in float32 is no answer in bfloat16
    assert trained("both", rows, [first[2], half[2]], dtype="bfloat16")[:2] == (half[0], 0)


def test_damaged_states_are_named_and_never_learnt_from(tiny_model, other, tmp_path) -> None:
    made = task(tmp_path / "a", tiny_model, examples(), "base", ref_path=str(other))
    out = tmp_path / "states.parquet"
    LocalTrainer().train(replace(made, states=StatesFiles((), str(out))))
    flip_a_bit(out)
    made = task(tmp_path / "b", tiny_model, examples(), "base", ref_path=str(other))
    with pytest.raises(DataError, match="not readable") as caught:
        LocalTrainer().train(replace(made, states=StatesFiles((str(out),), str(tmp_path / "c"))))
    assert caught.value.where == str(out) and "doctor" in str(caught.value)


def test_without_privilege_ones_own_start_has_nothing_to_teach(tiny_model, tmp_path) -> None:
    made = task(tmp_path, tiny_model, examples(), "previous", ref_path=str(tiny_model), epochs=1)
    report = LocalTrainer().train(made)
    assert report.loss_first == pytest.approx(0, abs=1e-9)
    assert log_of(made)[0]["agreement"] == pytest.approx(1)


@pytest.mark.parametrize(("teacher", "decay"), [("live", 0.0), ("ema", 0.7)])
@pytest.mark.parametrize("rank", [0, 4])
def test_teachers_that_move_with_the_student(tiny_model, tmp_path, teacher, decay, rank) -> None:
    """Against a plain loop with a second model as teacher; `live` is an average of decay 0.

    Of an adapter the trained matrices alone are averaged, A and B apart, not their product.
    """
    made = task(
        tmp_path, tiny_model, examples(True), teacher, settings={"ema_decay": decay},
        lora_rank=rank,
    )  # fmt: skip
    LocalTrainer().train(made)
    losses = [row["loss"] for row in log_of(made)]
    set_seed(made.seed)  # an adapter begins at random
    student = _load(made).double()
    average = copy.deepcopy(student)
    learning = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, weight_decay=0.0)
    for step in range(3):
        loss = expected(student, average, examples(True))
        assert losses[step] == pytest.approx(loss.item(), rel=1e-3)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 3)
        optimiser.step()
        with torch.no_grad():
            for kept, now in zip(average.parameters(), student.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)


def test_a_rounded_average_stays_the_same_for_a_whole_step(tiny_model, tmp_path) -> None:
    """All micro-batches of a step meet the same teacher, and the next step meets another."""
    model = _load(task(tmp_path, tiny_model, examples(), "ema", dtype="bfloat16"))
    batch = DistilCollator(0)([_row(i, e) for i, e in enumerate(examples())])
    teacher = teachers.Ema(model, 0.9, Rounding(3))
    first, second = (teacher.states(model, batch)[0] for _ in range(2))
    assert torch.equal(first, second)
    teacher.stepped(model)
    assert not torch.equal(teacher.states(model, batch)[0], first)


def test_the_output_head_is_shown_no_position(tiny_model, tmp_path, monkeypatch) -> None:
    """Neither the student's nor the teacher's: hidden states are all that is wanted of them."""
    seen: list[int] = []

    def watched(model: Any, *rest: Any) -> torch.Tensor:
        head = model.get_output_embeddings()
        watch = head.register_forward_hook(lambda _, __, out: seen.append(out.numel()))
        try:
            return hidden_states(model, *rest)
        finally:
            watch.remove()

    monkeypatch.setattr("selfkd.training.gkd.hidden_states", watched)
    monkeypatch.setattr(teachers, "hidden_states", watched)
    for teacher in ("base", "live"):
        made = task(
            tmp_path / teacher, tiny_model, examples(True), teacher, ref_path=str(tiny_model),
            epochs=1,
        )  # fmt: skip
        seen.clear()
        LocalTrainer().train(made)
        assert seen == [0, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("teacher", "rank", "micro"), [("base", 0, 6), ("ema", 0, 6), ("ema", 4, 6), ("ema", 0, 2)]
)
def test_a_training_cut_by_syncs_is_the_same_training(
    tiny_model, tmp_path, teacher, rank, micro, dtype
) -> None:
    def settings(folder: Path, **more: Any) -> Any:
        made = task(
            folder, tiny_model, examples(True), teacher, ref_path=str(tiny_model), lora_rank=rank,
            warmup_ratio=0.4, dtype=dtype, batch_size=6, micro_batch_size=micro,
        )  # fmt: skip
        return replace(made, **more)

    whole = settings(tmp_path / "whole", max_steps=5)
    LocalTrainer().train(whole)
    state, losses = None, []
    for first, steps in ((0, 2), (2, 1), (3, 2)):
        folder = tmp_path / str(first)
        left = str(folder / "state") if first + steps < 5 else None
        stretch = Stretch(first=first, total=5, state_from=state, state_to=left)
        part = settings(folder, max_steps=steps, stretch=stretch)
        LocalTrainer().train(part)
        losses += log_of(part)
        state = left
    names = ("step", "total_steps", "loss", "grad_norm", "learning_rate")
    for row, one in zip(losses, log_of(whole), strict=True):
        assert [row[n] for n in names] == pytest.approx([one[n] for n in names], rel=1e-4)
    one, other = (load_file(Path(t.out_dir) / "model.safetensors") for t in (whole, part))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=1e-3)


def told(teacher: Any, rows: Sequence[Example], k: int) -> list[Example]:
    """The examples with the teacher's k likeliest tokens at each place."""
    found = []
    for e in rows:
        with torch.no_grad():
            logprobs = logprobs_of(teacher, e)
        values, ids = logprobs.topk(k, -1)
        found.append(
            replace(
                e, teacher_ids=tuple(ids.flatten().tolist()),
                teacher_logprobs=tuple(values.flatten().tolist()),
            )
        )  # fmt: skip
    return found


def logprobs_of(model: Any, e: Example) -> torch.Tensor:
    return logprobs(model, e.prompt_tokens, e.completion_tokens)


def test_a_served_teacher_is_known_by_its_likeliest_tokens(tiny_model, other, tmp_path) -> None:
    teacher = double(other)
    losses = {}
    for name, rows in {
        "all": told(teacher, examples(), 258),
        "few": told(teacher, examples(), 8),
        "mixed": [*told(teacher, examples(), 8)[:3], *told(teacher, examples(), 16)[3:]],
    }.items():
        made = task(tmp_path / name, tiny_model, rows, "served", epochs=3)
        LocalTrainer().train(made)
        log = log_of(made)
        losses[name] = log[0]["loss"]
        assert log[-1]["loss"] < log[0]["loss"]
    full = float(expected(double(tiny_model), teacher, examples()))
    assert losses["all"] == pytest.approx(full, rel=1e-4)
    assert 0 < losses["few"] < losses["mixed"] < full


def test_a_padded_head_is_compared_on_what_both_have(tiny_model, tmp_path) -> None:
    padded = tmp_path / "padded"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.resize_token_embeddings(320)
    model.save_pretrained(padded)
    own = shutil.ignore_patterns("config.json", "model.safetensors")
    shutil.copytree(tiny_model, padded, ignore=own, dirs_exist_ok=True)
    made = task(tmp_path / "job", tiny_model, examples(), "teacher", ref_path=str(padded), epochs=1)
    report = LocalTrainer().train(made)
    assert report.loss_first == pytest.approx(0, abs=1e-6)
    # An engine that holds one cannot be given the other's weights.
    assert same_architecture(tiny_model, made.out_dir)
    assert not same_architecture(tiny_model, padded)


def test_a_model_that_changes_its_logits_is_refused(tiny_model) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    check_head(model, (5, 6, 7, 8), "the student")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda states: torch.tanh(plain(states))
    with pytest.raises(UsageError, match="logits of the teacher are not its output head"):
        check_head(model, (5, 6, 7, 8), "the teacher")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": "nobody"}, "names no teacher"),
        ({"teacher": "base", "kind": "kl"}, "kind 'kl' is unknown"),
        ({"teacher": "base", "beta": 0.0}, "Use kind='forward_kl'"),
        ({"teacher": "base", "temperature": 0.0}, "temperature 0.0 is not a positive number"),
        ({"teacher": "ema", "ema_decay": 1.0}, "ema_decay=1.0"),
    ],
)
def test_options_that_are_no_loss_are_refused(options, words) -> None:
    with pytest.raises(UsageError) as error:
        GKD(**options)
    assert words in str(error.value)
