"""Who a student learns from, and what is kept in memory for it.

N: predicted tokens of a batch, H: hidden size, V: vocabulary.

A teacher that does not change is asked once, before the first step: its hidden states of every
completion token are kept in a file that is mapped into memory, its head in memory, and the rest of
it is let go. So there is never a second model beside a training, and a second epoch costs no second
pass. Hidden states, not its likeliest tokens, because they lose nothing and a row of H numbers is
small beside the forward pass that it saves. A teacher that changes with the student is asked in
every step.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from selfkd.errors import UsageError
from selfkd.records import Example
from selfkd.training.base import StatesFiles, TrainJob
from selfkd.training.checkpoints import load
from selfkd.training.hidden import Head, check_head, hidden_states, output_head
from selfkd.training.parameters import show, trained
from selfkd.training.recall import Row, key, leave, length, recall
from selfkd.training.rounding import Rounding

Batch = dict[str, Any]


class Teacher(Protocol):
    """Knows the states from which it would predict the completion tokens of a batch."""

    def states(self, model: Any, batch: Batch) -> tuple[Tensor, Head]:
        """[N, H] in the order of the student's, and the head for them; `model` is the student."""
        ...

    def stepped(self, model: Any) -> None:
        """The student has made an optimiser step."""
        ...


class Live:
    """The student as it is, usually under a prompt that says more."""

    def states(self, model: Any, batch: Batch) -> tuple[Tensor, Head]:
        return _silent(model, _teacher_rows(batch)), output_head(model).detached()

    def stepped(self, model: Any) -> None: ...


class Ema:
    """An exponential moving average of the student: after each step, e <- decay e + (1 - decay) w.

    It starts as the student does. Of a student with an adapter only the adapter is averaged; the
    weights below are the same for both.
    """

    def __init__(self, model: Any, decay: float, rounding: Rounding | None) -> None:
        """`rounding`: where the student computes in bfloat16."""
        self._decay = decay
        self._rounding = rounding
        self.average = [p.detach().clone() for p in trained(model)]
        self._shown: list[Tensor] = []
        """The average as the step sees it; none before the step's first micro-batch."""

    def states(self, model: Any, batch: Batch) -> tuple[Tensor, Head]:
        # Rounded once a step, as the student is: its micro-batches are one batch.
        if not self._shown:
            self._shown = self._rounding(self.average) if self._rounding else self.average
        parameters = trained(model)
        students = [p.data for p in parameters]
        show(parameters, self._shown)
        try:
            states, head = _silent(model, _teacher_rows(batch)), output_head(model).detached()
        finally:
            show(parameters, students)
        return states, head

    def stepped(self, model: Any) -> None:
        with torch.no_grad():
            for average, now in zip(self.average, trained(model), strict=True):
                average.lerp_(now, 1 - self._decay)
        self._shown = []


class Answers(NamedTuple):
    """What a teacher said of the completion tokens of all rows."""

    states_UH: Tensor
    """U tokens, in a file that is mapped into memory."""
    spans: list[slice]
    """Where in it the states of each row are; those of rows with the same tokens in one place."""
    asked: int
    """Of how many rows it was asked for this."""


class Fixed:
    """A model that does not change, asked once; see the top of this file."""

    def __init__(self, answers: Answers, head: Head) -> None:
        self._answers = answers
        self._head = head
        self.asked = answers.asked

    def states(self, model: Any, batch: Batch) -> tuple[Tensor, Head]:
        found = self._answers
        parts = [found.states_UH[found.spans[i]] for i in batch["rows"].tolist()]
        return torch.cat(parts).to(batch["input_ids"].device), self._head

    def stepped(self, model: Any) -> None: ...


class Served:
    """The likeliest tokens at each place, as a served teacher told them; nothing is asked here."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._ids: list[Tensor] = []
        self._logprobs: list[Tensor] = []
        for e in examples:
            shape = (len(e.completion_tokens), -1)
            self._ids.append(torch.tensor(e.teacher_ids).view(shape))
            self._logprobs.append(torch.tensor(e.teacher_logprobs).view(shape))

    def likeliest(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities [N, K] in the order of the student's tokens."""
        rows, device = batch["rows"].tolist(), batch["input_ids"].device
        widest = max(self._ids[i].shape[1] for i in rows)
        ids = [_widened(self._ids[i], widest, -1) for i in rows]
        logprobs = [_widened(self._logprobs[i], widest, 0.0) for i in rows]
        return torch.cat(ids).to(device), torch.cat(logprobs).to(device)

    def stepped(self, model: Any) -> None: ...


def _widened(table: Tensor, columns: int, value: float) -> Tensor:
    return torch.nn.functional.pad(table, (0, columns - table.shape[1]), value=value)


def ask_once(
    trainer: Any, rows: Sequence[Row], job: TrainJob, dtype: torch.dtype, vocabulary: int
) -> Fixed:
    """Ask the policy in `job.ref_path`, or the model itself where that is what it starts from.

    The model's adapter, if it has one, is switched off. Raises UsageError where the vocabularies
    differ.
    """
    student = trainer.model
    own = job.ref_path == job.start_path
    model: Any = student if own else load(str(job.ref_path)).to(trainer.args.device)
    if not own:
        check_head(model, tuple(rows[0]["input_ids"]), "the teacher")
    off = student.disable_adapter() if own and job.options.lora_rank else nullcontext()
    head = output_head(model)
    if len(head.weight_VH) < vocabulary:
        raise UsageError(
            f"the teacher predicts {len(head.weight_VH)} tokens, the tokenizer has {vocabulary}",
            where=str(job.ref_path),
            remedy="distil from a model with the same tokenizer",
        )
    with off:
        answered = answers(trainer, model, rows, Path(job.log_file).parent, dtype, job.states)
    # A head that is not trained stays one tensor with the student's, which saves work downstream.
    moves = own and head.weight_VH.requires_grad
    return Fixed(answered, head.copy() if moves else head.detached())


def answers(
    trainer: Any,
    model: Any,
    rows: Sequence[Row],
    folder: Path,
    dtype: torch.dtype,
    kept: StatesFiles | None = None,
) -> Answers:
    """A teacher's states for the completion tokens of all rows, in a file without a name in
    `folder`. What is `kept` is not asked for, and what is asked for is kept then."""
    keys = [key(row) for row in rows]
    different = dict(zip(keys, rows, strict=True))
    lengths = {k: length(row) for k, row in different.items()}
    ends = torch.tensor(list(lengths.values())).cumsum(0).tolist()
    places = {k: slice(end - lengths[k], end) for k, end in zip(lengths, ends, strict=True)}
    width = output_head(model).weight_VH.shape[1]
    states = _mapped(folder, (ends[-1], width), dtype)
    unknown = dict(different)
    for file in kept.known if kept else ():
        for k, known in recall(Path(file), unknown.keys(), dtype, width):
            states[places[k]] = known
            del unknown[k]
    size = trainer.args.per_device_train_batch_size
    order = sorted(unknown, key=lambda k: len(unknown[k]["input_ids"]))
    for at in range(0, len(order), size):
        part = order[at : at + size]
        batch = trainer.data_collator([unknown[k] for k in part])
        batch = {k: v.to(trainer.args.device) for k, v in batch.items()}
        with trainer.accelerator.autocast():
            found = _silent(model, _teacher_rows(batch)).to("cpu", dtype)
        for k, piece in zip(part, found.split([lengths[k] for k in part]), strict=True):
            states[places[k]] = piece
    if kept and order:
        leave(Path(kept.out), {k: states[places[k]] for k in order}, dtype, width)
    return Answers(states, [places[k] for k in keys], len(order))


def _mapped(folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor in a file that has no name any more: gone when the process is."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-teacher-") as file:
        size = max(1, shape[0] * shape[1])
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype)[
            : shape[0] * shape[1]
        ].view(shape)


@torch.no_grad()
def _silent(model: Any, batch: Batch) -> Tensor:
    """Hidden states without gradients and dropout."""
    training = model.training
    model.eval()
    states = hidden_states(model, batch, batch["mask"])
    model.train(training)
    return states


def _teacher_rows(batch: Batch) -> Batch:
    """The rows that the teacher sees: those of the student, or others with the same completions."""
    prefix = "teacher_" if "teacher_input_ids" in batch else ""
    names = ("input_ids", "attention_mask", "mask")
    return {name: batch[prefix + name] for name in names}
