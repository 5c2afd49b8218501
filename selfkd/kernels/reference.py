"""The definition of truth: all logits at once, the formulas of the papers, autograd's gradients."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from selfkd.kernels.buckets import bucket_definition
from selfkd.kernels.chunked import DenseTeacher, SparseTeacher
from selfkd.kernels.measures import Measure, agreement, definition, entropy, log_softmax
from selfkd.kernels.result import Rows


def reference(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    teacher: DenseTeacher | SparseTeacher,
    index_M: Tensor,
    measure: Measure,
) -> Rows:
    """Figures of the tokens of `index_M`; `loss_C` is differentiable. At least float32."""
    wide = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32

    def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        chosen = hidden.index_select(0, index_M).to(wide)
        return linear(chosen, weight.to(wide), None if bias is None else bias.to(wide))

    student = logits(hidden_NH, weight_VH, bias_V)
    if isinstance(teacher, SparseTeacher):
        ids = teacher.ids_NK.index_select(0, index_M)
        logprobs = teacher.logprobs_NK.index_select(0, index_M)
        return bucket_definition(student, ids, logprobs, measure)
    taught = logits(teacher.hidden_NH, teacher.weight_VH, teacher.bias_V)
    log_q, log_p = (log_softmax(x, measure.temperature) for x in (student, taught))
    loss = definition(log_p, log_q, measure)
    return Rows(loss, entropy(log_q), entropy(log_p), agreement(taught, student), None)
