"""A teacher of whom only the k likeliest tokens are known: k+1 buckets, the last for all the rest.

C: tokens of a chunk, V: vocabulary, K: tokens known of the teacher. The student's probabilities are
summed over the same buckets, so no information is made up: the divergence of the buckets is never
negative and never more than that of the full distributions. An id below 0 is a bucket without mass.
"""

import torch
from torch import Tensor

from selfkd.kernels.engine import Engine
from selfkd.kernels.measures import FLOOR, Measure, closed_form, definition, entropy
from selfkd.kernels.result import Rows


def bucket_definition(
    logits_CV: Tensor, ids_CK: Tensor, logprobs_CK: Tensor, measure: Measure
) -> Rows:
    """The truth for a few rows: autograd finds the gradient."""
    known = ids_CK >= 0
    log_q = torch.log_softmax(logits_CV / measure.temperature, -1)
    student = in_buckets(log_q, ids_CK)
    teacher = _teacher_buckets(logprobs_CK, known, student[:, -1:]).to(log_q.dtype)
    loss = definition(teacher, student.clamp_min(FLOOR), measure)
    return Rows(
        loss,
        entropy(log_q.clamp_min(FLOOR)),
        entropy(teacher),
        _agreement(
            logits_CV.amax(-1), logits_CV.gather(-1, ids_CK.clamp_min(0)), logprobs_CK, known
        ),
        None,
    )


def in_buckets(log_q_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Log-probabilities [C, K + 1] of the ids, and of all other tokens together."""
    # A row without room for its padding writes to the extra column.
    column = torch.where(ids_CK >= 0, ids_CK, log_q_CV.shape[-1])
    padded = torch.cat([log_q_CV, log_q_CV.new_full((len(log_q_CV), 1), -torch.inf)], -1)
    rest = padded.scatter(-1, column, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([padded.gather(-1, column), rest], -1)


def bucket_rows(
    engine: Engine,
    logits_CV: Tensor,
    ids_CK: Tensor,
    logprobs_CK: Tensor,
    scale_C: Tensor,
    measure: Measure,
    into_CV: Tensor | None,
) -> Rows:
    """Figures of a chunk; the gradient of a bucket is shared out within it in proportion to q.

    The tail is summed over what is not among the k, not as 1 minus the k, which would cancel: the
    k are taken out of the logits, which are written over.
    """
    known = ids_CK >= 0
    row, id = known.nonzero()[:, 0], ids_CK[known]
    logits_CK = logits_CV.new_full(ids_CK.shape, -torch.inf).masked_scatter_(
        known, logits_CV[row, id]
    )
    logits_CV[row, id] = -torch.inf
    top_rest, log_rest, entropy_rest = engine.softmax(logits_CV, measure.temperature)
    buckets = torch.cat([logits_CK / measure.temperature, log_rest.unsqueeze(-1)], -1)
    student = torch.log_softmax(buckets, -1).clamp_min(FLOOR)
    teacher = _teacher_buckets(logprobs_CK, known, log_rest.unsqueeze(-1)).to(student.dtype)
    loss, pull = closed_form(teacher, student, measure)
    gradient = None
    if into_CV is not None:
        pull = pull * (scale_C / measure.temperature).unsqueeze(-1)
        gradient = engine.spread(logits_CV, log_rest, pull[:, -1], measure.temperature, into_CV)
        gradient[row, id] = pull[:, :-1][known].to(gradient.dtype)
    top = torch.maximum(top_rest, logits_CK.amax(-1))
    return Rows(
        loss,
        entropy(student) + student[:, -1].exp() * entropy_rest,
        entropy(teacher),
        _agreement(top, logits_CK, logprobs_CK, known),
        gradient,
    )


def _teacher_buckets(logprobs_CK: Tensor, known_CK: Tensor, log_rest_C1: Tensor) -> Tensor:
    """Log-probabilities of the k ids and of the rest, which is 0 for ids that sum to 1 or more.

    Where every token is known there is no rest; what rounding leaves of the teacher's is dropped.
    """
    logprobs = logprobs_CK.double().masked_fill(~known_CK, -torch.inf)
    total = torch.logsumexp(logprobs, -1, keepdim=True)
    tail = torch.log(-torch.expm1(total.clamp_max(0.0)))
    tail = tail.masked_fill(log_rest_C1 == -torch.inf, -torch.inf)
    return torch.cat([logprobs - total.clamp_min(0.0), tail], -1).clamp_min(FLOOR)


def _agreement(top_C: Tensor, logits_CK: Tensor, logprobs_CK: Tensor, known_CK: Tensor) -> Tensor:
    """Whether one of the teacher's likeliest known tokens is among the student's."""
    logprobs = logprobs_CK.masked_fill(~known_CK, -torch.inf)
    likeliest = known_CK & (logprobs == logprobs.amax(-1, keepdim=True))
    return (likeliest & (logits_CK == top_C.unsqueeze(-1))).any(-1)
