"""The two functions of this package: check, drop tokens without weight, choose a backend, run.

N: tokens, M: tokens with a weight, H: hidden size, V: vocabulary, K: tokens known of a teacher.
"""

from math import isfinite

import torch
from torch import Tensor

from selfkd.errors import UsageError
from selfkd.kernels.backends import choose_engine
from selfkd.kernels.checks import check_dense, check_sparse, multiply_dtype
from selfkd.kernels.chunked import (
    CHUNK_BYTES,
    DenseTeacher,
    FusedDivergence,
    Request,
    SparseTeacher,
)
from selfkd.kernels.measures import Measure, measure
from selfkd.kernels.reference import reference
from selfkd.kernels.result import Divergence

Normalizer = float | int | Tensor | None


def fused_linear_divergence(
    student_hidden_NH: Tensor,
    student_weight_VH: Tensor,
    teacher_hidden_NH: Tensor,
    teacher_weight_VH: Tensor,
    *,
    weight_N: Tensor | None = None,
    kind: str = "jsd",
    beta: float = 0.5,
    temperature: float = 1.0,
    student_bias_V: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    normalizer: Normalizer = None,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> Divergence:
    """Divergence of a student's next-token distributions from a teacher's, without their logits.

    Gradients flow to the student's hidden states, head and bias, where they want them. The hidden
    sizes of the two may differ, their vocabularies may not.

    weight_N: how much each token counts, any real or boolean dtype; a token of weight 0 costs
        nothing (prompt, padding). None: all count 1.
    kind: forward_kl KL(p‖q), reverse_kl KL(q‖p), jsd (Agarwal et al. 2024, eq. 1), skew_kl and
        skew_reverse_kl (Ko et al. 2024), tvd; p is the teacher.
    beta: for jsd the teacher's share of the mixture, in (0, 1); for the skewed kinds the share of
        the first argument's own distribution, in [0, 1).
    temperature: divides both models' logits; the loss is not multiplied by its square.
    normalizer: what the weighted sum is divided by: None for the sum of weights of this call, 1
        for the plain sum, or the sum of weights of a whole optimizer step, over all its calls.
    backend: auto, reference, torch, cpu or triton. Under autocast products are in its dtype.
    chunk_size: tokens whose logits are held at once; None for what suits the device.

    Raises UsageError for shapes, dtypes or options that do not fit.
    """
    teacher_bias_V = None if teacher_bias_V is None else teacher_bias_V.detach()
    teacher = DenseTeacher(teacher_hidden_NH.detach(), teacher_weight_VH.detach(), teacher_bias_V)
    check_dense(student_hidden_NH, student_weight_VH, student_bias_V, teacher)
    return _divergence(
        student_hidden_NH,
        student_weight_VH,
        student_bias_V,
        teacher,
        weight_N,
        measure(kind, beta, temperature),
        normalizer,
        backend,
        chunk_size,
    )


def sparse_linear_divergence(
    student_hidden_NH: Tensor,
    student_weight_VH: Tensor,
    teacher_ids_NK: Tensor,
    teacher_logprobs_NK: Tensor,
    *,
    weight_N: Tensor | None = None,
    kind: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    student_bias_V: Tensor | None = None,
    normalizer: Normalizer = None,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> Divergence:
    """The same for a teacher of whom only the k likeliest tokens are known, as servers return them.

    Both distributions are summed into k+1 buckets, one per known token and one for all the rest.
    The result is never negative and never above the full divergence; what the student does inside
    the last bucket is left to it. `temperature` divides the student's logits only: the teacher's
    log-probabilities have to come at that temperature. An id below 0 is padding. The other
    arguments are those of `fused_linear_divergence`.

    Raises UsageError for shapes, dtypes, ids or options that do not fit.
    """
    teacher = SparseTeacher(teacher_ids_NK.long(), teacher_logprobs_NK.detach())
    check_sparse(student_hidden_NH, student_weight_VH, student_bias_V, teacher)
    return _divergence(
        student_hidden_NH,
        student_weight_VH,
        student_bias_V,
        teacher,
        weight_N,
        measure(kind, beta, temperature),
        normalizer,
        backend,
        chunk_size,
    )


def _divergence(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    teacher: DenseTeacher | SparseTeacher,
    weight_N: Tensor | None,
    measure: Measure,
    normalizer: Normalizer,
    backend: str,
    chunk_size: int | None,
) -> Divergence:
    multiply = multiply_dtype(hidden_NH, weight_VH)
    scale, index = _tokens(hidden_NH, weight_N, normalizer)
    if backend == "reference":
        return _reference(hidden_NH, weight_VH, bias_V, teacher, scale, index, measure)
    engine = choose_engine(backend, multiply, hidden_NH.device)
    if chunk_size is None:
        row = len(weight_VH) * engine.accumulate.itemsize
        chunk_size = max(16, CHUNK_BYTES.get(hidden_NH.device.type, 2**27) // max(1, row))
    elif chunk_size < 1:
        raise UsageError(f"chunk_size {chunk_size} is not positive")
    scale = scale.to(engine.accumulate)
    gradients = torch.is_grad_enabled()
    request = Request(engine, teacher, index, scale, measure, int(chunk_size), gradients)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        figures = FusedDivergence.apply(hidden_NH, weight_VH, bias_V, request)
    loss, per_token, student_entropy, teacher_entropy, agreement = figures
    return Divergence(loss, per_token, student_entropy, teacher_entropy, agreement, engine.name)


def _tokens(
    hidden_NH: Tensor, weight_N: Tensor | None, normalizer: Normalizer
) -> tuple[Tensor, Tensor]:
    """Weight over normalizer [N], float64, and the indices of the tokens that count [M].

    A GPU is waited for where there are weights to look at, or a normalizer that is there.
    """
    count, device = len(hidden_NH), hidden_NH.device
    if weight_N is None:
        weight = torch.ones(count, dtype=torch.float64, device=device)
        index, total = torch.arange(count, device=device), float(count)
    elif weight_N.shape != (count,):
        raise UsageError(f"weight_N has shape {tuple(weight_N.shape)}, not ({count},)")
    else:
        weight = weight_N.detach().to(device, torch.float64)
        index, total = weight.nonzero().squeeze(-1), float(weight.sum())
        if not isfinite(total):
            raise UsageError("weight_N has an entry that is not finite")
    if normalizer is not None:
        total = float(normalizer)
    if len(index) and not total > 0:
        what = "the sum of weight_N" if normalizer is None else "normalizer"
        raise UsageError(f"{what} is {total}, not positive")
    return (weight / total if len(index) else weight), index


def _reference(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    teacher: DenseTeacher | SparseTeacher,
    scale_N: Tensor,
    index_M: Tensor,
    measure: Measure,
) -> Divergence:
    rows = reference(hidden_NH, weight_VH, bias_V, teacher, index_M, measure)
    loss = (rows.loss_C * scale_N.index_select(0, index_M).to(rows.loss_C.dtype)).sum()
    figures = (
        torch.zeros(len(hidden_NH), dtype=rows.loss_C.dtype, device=hidden_NH.device).index_copy(
            0, index_M, figure.detach().to(rows.loss_C.dtype)
        )
        for figure in rows[:4]
    )
    per_token, student_entropy, teacher_entropy, agreement = figures
    return Divergence(loss, per_token, student_entropy, teacher_entropy, agreement, "reference")
