"""Refuses tensors that do not fit together, in words.

N: tokens, H: hidden size, V: vocabulary, K: tokens known of a teacher.
"""

import torch
from torch import Tensor

from selfkd.errors import UsageError
from selfkd.kernels.chunked import DenseTeacher, SparseTeacher

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def multiply_dtype(hidden_NH: Tensor, weight_VH: Tensor) -> torch.dtype:
    """The dtype of the products' factors: autocast's, or the inputs' (float16 is widened).

    float16 has too few exponents for the gradients of single logits.
    """
    device = hidden_NH.device.type
    wide = torch.promote_types(hidden_NH.dtype, weight_VH.dtype)
    if wide != torch.float64 and torch.is_autocast_enabled(device):
        wide = torch.get_autocast_dtype(device)
    return torch.float32 if wide == torch.float16 else wide


def check_dense(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, teacher: DenseTeacher
) -> None:
    _check_model("student", hidden_NH, weight_VH, bias_V, hidden_NH.device)
    _check_model("teacher", teacher.hidden_NH, teacher.weight_VH, teacher.bias_V, hidden_NH.device)
    if len(hidden_NH) != len(teacher.hidden_NH):
        raise UsageError(
            f"student_hidden_NH has {len(hidden_NH)} tokens, "
            f"teacher_hidden_NH {len(teacher.hidden_NH)}"
        )
    if len(weight_VH) != len(teacher.weight_VH):
        raise UsageError(
            f"the student's vocabulary is {len(weight_VH)}, the teacher's {len(teacher.weight_VH)}",
            remedy="Cut padded rows off the larger head; different tokenizers cannot be compared.",
        )


def check_sparse(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, teacher: SparseTeacher
) -> None:
    _check_model("student", hidden_NH, weight_VH, bias_V, hidden_NH.device)
    ids, logprobs = teacher.ids_NK, teacher.logprobs_NK
    if ids.ndim != 2 or ids.shape != logprobs.shape or len(ids) != len(hidden_NH):
        raise UsageError(
            f"teacher_ids_NK has shape {tuple(ids.shape)} and teacher_logprobs_NK "
            f"{tuple(logprobs.shape)}; both should be ({len(hidden_NH)}, k)"
        )
    if not ids.numel():
        if len(ids):
            raise UsageError("teacher_ids_NK names no token: k is 0")
        return
    if ids.max() >= len(weight_VH):
        raise UsageError(f"teacher id {int(ids.max())} is outside the vocabulary {len(weight_VH)}")
    ordered = ids.sort(-1).values
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise UsageError("teacher_ids_NK names a token twice for the same position")
    if not (logprobs <= 1e-3)[ids >= 0].all():
        raise UsageError("teacher_logprobs_NK has an entry above 0 or NaN")


def _check_model(
    who: str,
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    device: torch.device,
) -> None:
    if hidden_NH.ndim != 2 or weight_VH.ndim != 2 or hidden_NH.shape[1] != weight_VH.shape[1]:
        raise UsageError(
            f"{who}_hidden_NH has shape {tuple(hidden_NH.shape)} and {who}_weight_VH "
            f"{tuple(weight_VH.shape)}; they should be (N, H) and (V, H)"
        )
    if not len(weight_VH):
        raise UsageError(f"{who}_weight_VH has no rows")
    if bias_V is not None and bias_V.shape != (len(weight_VH),):
        raise UsageError(f"{who}_bias_V has shape {tuple(bias_V.shape)}, not ({len(weight_VH)},)")
    for name, tensor in (("hidden_NH", hidden_NH), ("weight_VH", weight_VH), ("bias_V", bias_V)):
        if tensor is None:
            continue
        if tensor.dtype not in FLOATS:
            raise UsageError(f"{who}_{name} is {tensor.dtype}, not a floating dtype")
        if tensor.device != device:
            raise UsageError(f"{who}_{name} is on {tensor.device}, student_hidden_NH on {device}")
