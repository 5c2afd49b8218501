"""A teacher of whom only the k likeliest tokens are known: k+1 buckets, the last for all the rest.

B: rows, V: vocabulary, K: tokens known of the teacher. The student's probabilities are summed over
the same buckets, so no information is made up: the divergence of the buckets is never negative and
never more than that of the full distributions. An id below 0 is a bucket without mass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from selfkd.kernels.measures import FLOOR, Measure, closed_form, definition, entropy
from selfkd.kernels.result import Rows


class Buckets(NamedTuple):
    """Both models' log-probabilities over the k+1 buckets, and the student's within the last."""

    teacher_BK1: Tensor
    student_BK1: Tensor
    rest_BV: Tensor
    """Student logits over temperature, -inf at the k ids."""
    log_rest_B1: Tensor
    """Log of the sum of the exponentials of `rest_BV`."""
    log_all_B1: Tensor


def fill_buckets(
    logits_BV: Tensor, ids_BK: Tensor, teacher_logprobs_BK: Tensor, temperature: float
) -> Buckets:
    """The tail is summed over what is not among the k, not as 1 minus the k, which would cancel."""
    scaled = logits_BV / temperature
    known = ids_BK >= 0
    at = ids_BK.clamp_min(0)
    picked = scaled.gather(-1, at).masked_fill(~known, -torch.inf)
    # A row without room for its padding writes to the extra column.
    padded = torch.cat([scaled, scaled.new_empty(len(scaled), 1)], dim=-1)
    column = torch.where(known, at, scaled.shape[-1])
    rest = padded.scatter(-1, column, -torch.inf)[:, :-1]
    log_rest = torch.logsumexp(rest, -1, keepdim=True)
    log_all = torch.logsumexp(scaled, -1, keepdim=True)
    student = torch.log_softmax(torch.cat([picked, log_rest], -1), -1).clamp_min(FLOOR)
    teacher = teacher_buckets(teacher_logprobs_BK, known).to(scaled.dtype)
    # Where every token is known there is no rest; what rounding leaves of the teacher's is dropped.
    empty = torch.cat([torch.zeros_like(known), log_rest == -torch.inf], -1)
    teacher = teacher.masked_fill(empty, FLOOR)
    return Buckets(teacher, student, rest, log_rest, log_all)


def teacher_buckets(logprobs_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Log-probabilities of the k ids and of the rest, which is 0 for ids that sum to 1 or more."""
    logprobs = logprobs_BK.double().masked_fill(~known_BK, -torch.inf)
    total = torch.logsumexp(logprobs, -1, keepdim=True)
    tail = torch.log(-torch.expm1(total.clamp_max(0.0)))
    scaled = logprobs - total.clamp_min(0.0)
    return torch.cat([scaled, tail], -1).clamp_min(FLOOR)


def bucket_definition(
    logits_BV: Tensor, ids_BK: Tensor, logprobs_BK: Tensor, measure: Measure
) -> Rows:
    """The truth for a few rows: autograd finds the gradient."""
    buckets = fill_buckets(logits_BV, ids_BK, logprobs_BK, measure.temperature)
    loss = definition(buckets.teacher_BK1, buckets.student_BK1, measure)
    return _rows(loss, logits_BV, ids_BK, logprobs_BK, buckets, None)


def bucket_rows(
    logits_BV: Tensor, ids_BK: Tensor, logprobs_BK: Tensor, scale_B: Tensor, measure: Measure
) -> Rows:
    """Figures of a chunk; the gradient of a bucket is shared out within it in proportion to q."""
    buckets = fill_buckets(logits_BV, ids_BK, logprobs_BK, measure.temperature)
    loss, pull = closed_form(buckets.teacher_BK1, buckets.student_BK1, measure)
    pull = pull * (scale_B / measure.temperature).unsqueeze(-1)
    within = torch.exp(buckets.rest_BV - buckets.log_rest_B1.clamp_min(FLOOR))
    gradient = within.mul_(pull[:, -1:])
    known = ids_BK >= 0
    gradient.scatter_add_(-1, ids_BK.clamp_min(0), pull[:, :-1].masked_fill(~known, 0.0))
    return _rows(loss, logits_BV, ids_BK, logprobs_BK, buckets, gradient)


def _rows(
    loss_B: Tensor,
    logits_BV: Tensor,
    ids_BK: Tensor,
    logprobs_BK: Tensor,
    buckets: Buckets,
    gradient_BV: Tensor | None,
) -> Rows:
    known = ids_BK >= 0
    logprobs = logprobs_BK.masked_fill(~known, -torch.inf)
    top = known & (logprobs == logprobs.amax(-1, keepdim=True))
    best = logits_BV.gather(-1, ids_BK.clamp_min(0)) == logits_BV.amax(-1, keepdim=True)
    log_q = buckets.rest_BV - buckets.log_all_B1
    rest = entropy(log_q.clamp_min(FLOOR))
    student = rest + entropy(buckets.student_BK1[:, :-1])
    return Rows(loss_B, student, entropy(buckets.teacher_BK1), (top & best).any(-1), gradient_BV)
