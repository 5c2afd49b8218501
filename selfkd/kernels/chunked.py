"""Chunk by chunk: logits, divergence and gradients, all in the forward pass.

N: tokens, M: tokens with a weight, C: tokens of a chunk, H: hidden size, V: vocabulary, K: tokens
known of a sparse teacher, G: tokens of a group, whose gradients are multiplied at once. Beyond its
inputs and gradients a call holds the logits of one chunk of each model and, on a GPU, the gradients
of one group.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from selfkd.errors import UsageError
from selfkd.kernels.buckets import bucket_rows
from selfkd.kernels.engine import Engine
from selfkd.kernels.measures import Measure
from selfkd.kernels.pages import empty
from selfkd.kernels.result import Rows

CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**28}
"""For the logits of one model: large enough for products to be efficient, no larger."""


class Teacher(Protocol):
    """Who knows what the student should have said."""

    def prepare(self, work: "Work") -> None:
        """Ready the head, once."""
        ...

    def buffers(self) -> int:
        """Chunks of logits it needs beside the student's."""
        ...

    def compare(self, work: "Work", index_C: Tensor, scale_C: Tensor) -> Rows:
        """Both models' logits for some tokens, and their divergence."""
        ...


@dataclass(slots=True)
class Work:
    """The state of one call."""

    engine: Engine
    hidden_NH: Tensor
    given_weight_VH: Tensor
    weight_VH: Tensor
    """The same, prepared."""
    given_bias_V: Tensor | None
    bias_V: Tensor | None
    buffer: Tensor
    """[chunks * C, row stride]"""
    gradients_GV: Tensor | None
    """Room for the gradients of a group, where they are not written over the logits."""
    measure: Measure
    gradient: bool
    """Whether any is wanted."""
    filled: int = 0
    """Tokens of the group whose gradients are there."""

    def tokens(self, hidden_NH: Tensor, index_C: Tensor) -> Tensor:
        return hidden_NH.index_select(0, index_C).to(self.engine.multiply)

    def logits(self, count: int, chunks: int) -> list[Tensor]:
        """Room for the logits of `count` tokens, `chunks` times, one behind the other."""
        flat = self.buffer[: count * chunks, : len(self.given_weight_VH)]
        return [flat, *flat.split(count)]

    def gradient_room(self, student_CV: Tensor) -> Tensor | None:
        """Where a chunk's gradient goes; None where none is wanted."""
        if not self.gradient:
            return None
        if self.gradients_GV is None:
            return student_CV
        part = self.gradients_GV[self.filled : self.filled + len(student_CV)]
        return part[:, : student_CV.shape[1]]

    def group_gradient(self, last_CV: Tensor, count: int) -> Tensor:
        """The gradients of the `count` tokens of a group, given those of its last chunk."""
        if self.gradients_GV is None:
            return last_CV
        return self.gradients_GV[:count, : last_CV.shape[1]]


@dataclass(slots=True)
class DenseTeacher:
    """A model: hidden states and a head."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    prepared_VH: Tensor | None = None

    def prepare(self, work: "Work") -> None:
        engine, bias = work.engine, self.bias_V
        shared = same_tensor(self.weight_VH, work.given_weight_VH)
        self.prepared_VH = work.weight_VH if shared else engine.prepare(self.weight_VH)
        if bias is not None:
            same = work.given_bias_V is not None and same_tensor(bias, work.given_bias_V)
            self.bias_V = work.bias_V if same else bias.to(engine.accumulate)

    def buffers(self) -> int:
        return 1

    def compare(self, work: Work, index_C: Tensor, scale_C: Tensor) -> Rows:
        both, student, teacher = work.logits(len(index_C), 2)
        hidden = work.tokens(work.hidden_NH, index_C)
        teacher_hidden = work.tokens(self.hidden_NH, index_C)
        project, bias = work.engine.project, self.bias_V
        assert self.prepared_VH is not None
        if self.prepared_VH is work.weight_VH and bias is work.bias_V:
            project(torch.cat([hidden, teacher_hidden]), work.weight_VH, work.bias_V, both)
        else:
            project(hidden, work.weight_VH, work.bias_V, student)
            project(teacher_hidden, self.prepared_VH, bias, teacher)
        into = work.gradient_room(student)
        return work.engine.rows(student, teacher, scale_C, work.measure, into)


@dataclass(slots=True)
class SparseTeacher:
    """A served model: the ids and log-probabilities of its k likeliest tokens."""

    ids_NK: Tensor
    logprobs_NK: Tensor

    def prepare(self, work: "Work") -> None:
        pass

    def buffers(self) -> int:
        return 0

    def compare(self, work: Work, index_C: Tensor, scale_C: Tensor) -> Rows:
        _, student = work.logits(len(index_C), 1)
        hidden = work.tokens(work.hidden_NH, index_C)
        work.engine.project(hidden, work.weight_VH, work.bias_V, student)
        ids = self.ids_NK.index_select(0, index_C)
        logprobs = self.logprobs_NK.index_select(0, index_C)
        into = work.gradient_room(student)
        return bucket_rows(work.engine, student, ids, logprobs, scale_C, work.measure, into)


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether both are views of the same memory in the same way, as tied heads are."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


@dataclass(frozen=True, slots=True)
class Request:
    """What a call asks for beside the tensors that get gradients."""

    engine: Engine
    teacher: Teacher
    index_M: Tensor
    """The tokens whose weight is not 0."""
    scale_N: Tensor
    """Weight over normalizer."""
    measure: Measure
    chunk_size: int
    gradients: bool
    """Whether any will be asked for: inside forward autograd is off, so it cannot be seen there."""


class FusedDivergence(torch.autograd.Function):
    """Loss and per-token figures; the gradients are made on the way and only scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, request: Request
    ) -> tuple[Tensor, ...]:
        wanted = tuple(request.gradients and need for need in ctx.needs_input_grad[:3])
        figures, gradients = _run(hidden_NH, weight_VH, bias_V, request, wanted)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*figures[1:])
        ctx.set_materialize_grads(False)
        return figures

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        # Only create_graph switches gradients on here. `once_differentiable` would not do: it looks
        # at what comes in, which seldom wants a gradient, and lets a wrong derivative pass.
        if torch.is_grad_enabled():
            raise UsageError(
                "the fused divergence has no second derivatives, which create_graph=True asks for",
                remedy="Use backend='reference', or leave create_graph out.",
            )
        factor = grad_outputs[0]
        if factor is None:
            return None, None, None, None
        # A GPU is waited for, which costs less than another tensor as large as the head.
        unscaled = float(factor) == 1.0
        gradients = (
            gradient if gradient is None or unscaled else gradient * factor.to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return (*gradients, None)


def _run(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    request: Request,
    wanted: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    engine, teacher, index_M = request.engine, request.teacher, request.index_M
    chunks = max(1, -(-len(index_M) // request.chunk_size))
    count = -(-len(index_M) // chunks)  # chunks of about the same size
    group = count * max(1, min(engine.gradient_chunks, chunks))
    work = _ready(hidden_NH, weight_VH, bias_V, request, count, group, any(wanted))
    sums = _Gradients(work, wanted)
    wide = {"dtype": engine.accumulate, "device": hidden_NH.device}
    loss = torch.zeros((), dtype=torch.float64, device=hidden_NH.device)
    per_token = [torch.zeros(len(hidden_NH), **wide) for _ in range(4)]
    for group_index in index_M.split(group) if len(index_M) else ():
        gradient = None
        for place, index in enumerate(group_index.split(count)):
            work.filled = place * count
            scale = request.scale_N.index_select(0, index)
            rows = teacher.compare(work, index, scale)
            loss += torch.dot(rows.loss_C.double(), scale.double())
            for figure, values in zip(per_token, rows[:4], strict=True):
                figure.index_copy_(0, index, values.to(figure.dtype))
            gradient = rows.gradient_CV
        if gradient is not None:
            sums.add(work.group_gradient(gradient, len(group_index)), group_index)
    return (loss.to(engine.accumulate), *per_token), sums.result(weight_VH, bias_V)


def _ready(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    request: Request,
    count: int,
    group: int,
    gradient: bool,
) -> Work:
    """Room for chunks of `count` and groups of `group` tokens, and prepared heads."""
    engine, teacher, device = request.engine, request.teacher, hidden_NH.device
    stride = engine.row_stride(len(weight_VH))
    apart = gradient and engine.gradient_chunks
    work = Work(
        engine,
        hidden_NH,
        weight_VH,
        engine.prepare(weight_VH),
        bias_V,
        None if bias_V is None else bias_V.to(engine.accumulate),
        empty(((1 + teacher.buffers()) * count, stride), engine.accumulate, device),
        empty((group, stride), engine.multiply, device) if apart else None,
        request.measure,
        gradient,
    )
    work.buffer[:, len(weight_VH) :] = -torch.inf
    teacher.prepare(work)
    return work


class _Gradients:
    """The sums that gradients are made of, over the groups."""

    def __init__(self, work: Work, wanted: tuple[bool, ...]) -> None:
        self.work = work
        wide = {"dtype": work.engine.accumulate, "device": work.hidden_NH.device}
        head = work.given_weight_VH
        self.hidden_NH = torch.zeros_like(work.hidden_NH) if wanted[0] else None
        shape, dtype = tuple(head.shape), work.engine.sums(head.dtype)
        self.weight_VH = empty(shape, dtype, head.device) if wanted[1] else None
        self.bias_V = torch.zeros(len(head), **wide) if wanted[2] else None
        self.first = True

    def add(self, gradient_GV: Tensor, index_G: Tensor) -> None:
        engine = self.work.engine
        if self.hidden_NH is not None:
            part = engine.hidden_gradient(gradient_GV, self.work.weight_VH)
            self.hidden_NH.index_copy_(0, index_G, part.to(self.hidden_NH.dtype))
        if self.weight_VH is not None:
            hidden = self.work.tokens(self.work.hidden_NH, index_G)
            engine.weight_gradient(gradient_GV, hidden, self.weight_VH, self.first)
        if self.bias_V is not None:
            self.bias_V += gradient_GV.sum(0, dtype=self.bias_V.dtype)
        self.first = False

    def result(self, weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor | None, ...]:
        if self.weight_VH is not None and self.first:
            self.weight_VH.zero_()
        bias = None if self.bias_V is None or bias_V is None else self.bias_V.to(bias_V.dtype)
        return self.hidden_NH, _rounded(self.weight_VH, weight_VH.dtype), bias


def _rounded(sums_VH: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if sums_VH is None or sums_VH.dtype == dtype:
        return sums_VH
    return empty(tuple(sums_VH.shape), dtype, sums_VH.device).copy_(sums_VH)
