"""What a backend has to do for one chunk of tokens, and how torch alone does it.

C: tokens of a chunk, H: hidden size, V: vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from selfkd.kernels.measures import Measure, agreement, closed_form, entropy, log_softmax
from selfkd.kernels.result import Rows


class Engine(Protocol):
    """The matrix products and the row work of a chunk. Logits and sums are `accumulate` wide."""

    name: str
    multiply: torch.dtype
    """What the factors of a product are rounded to."""
    accumulate: torch.dtype

    def row_stride(self, vocabulary: int) -> int:
        """Elements from one row of logits to the next."""
        ...

    def prepare(self, weight_VH: Tensor) -> Tensor:
        """A head as the products below want it; once a call."""
        ...

    def project(
        self, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, out_CV: Tensor
    ) -> None:
        """Logits into `out_CV`."""
        ...

    def rows(
        self,
        student_CV: Tensor,
        teacher_CV: Tensor,
        scale_C: Tensor,
        measure: Measure,
        gradient: bool,
    ) -> Rows:
        """Divergences; the gradient may be written over the logits."""
        ...

    def hidden_gradient(self, gradient_CV: Tensor, weight_VH: Tensor) -> Tensor:
        """[C, H]"""
        ...

    def weight_gradient(
        self, gradient_CV: Tensor, hidden_CH: Tensor, out_VH: Tensor, first: bool
    ) -> None:
        """Add to `out_VH`, or write it where it is the first chunk's."""
        ...


class TorchEngine:
    """Any device and dtype: rows are worked through in blocks, so that temporaries stay small.

    bfloat16 factors give float32 logits: on CUDA by the product's output type, on a CPU by float32
    storage with oneDNN told to multiply in bfloat16.
    """

    name = "torch"

    def __init__(self, multiply: torch.dtype, device: torch.device) -> None:
        self.multiply = multiply
        self.accumulate = torch.float64 if multiply == torch.float64 else torch.float32
        self.device = device
        self.narrow = multiply == torch.bfloat16
        self.storage = multiply if device.type == "cuda" else self.accumulate

    def row_stride(self, vocabulary: int) -> int:
        return vocabulary

    def prepare(self, weight_VH: Tensor) -> Tensor:
        # Rounded to the factors' dtype first: whether oneDNN then multiplies in it changes nothing.
        return weight_VH.to(self.multiply).to(self.storage)

    def project(
        self, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, out_CV: Tensor
    ) -> None:
        self._product(hidden_CH, weight_VH.t(), out_CV)
        if bias_V is not None:
            out_CV += bias_V

    def rows(
        self,
        student_CV: Tensor,
        teacher_CV: Tensor,
        scale_C: Tensor,
        measure: Measure,
        gradient: bool,
    ) -> Rows:
        def block(part: slice) -> Rows:
            student, teacher = student_CV[part], teacher_CV[part]
            log_q = log_softmax(student, measure.temperature)
            log_p = log_softmax(teacher, measure.temperature)
            loss, pull = closed_form(log_p, log_q, measure)
            same = agreement(teacher, student)
            if gradient:
                scale = scale_C[part].unsqueeze(-1) / measure.temperature
                student.copy_(pull * scale)
            return Rows(loss, entropy(log_q), entropy(log_p), same, None)

        rows = in_blocks(block, student_CV)
        return rows._replace(gradient_CV=student_CV if gradient else None)

    def hidden_gradient(self, gradient_CV: Tensor, weight_VH: Tensor) -> Tensor:
        out = gradient_CV.new_empty(len(gradient_CV), weight_VH.shape[1], dtype=self.accumulate)
        self._product(gradient_CV, weight_VH, out)
        return out

    def weight_gradient(
        self, gradient_CV: Tensor, hidden_CH: Tensor, out_VH: Tensor, first: bool
    ) -> None:
        self._product(gradient_CV.t(), hidden_CH, out_VH, add=not first)

    def _product(self, left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
        left, right = left.to(self.storage), right.to(self.storage)
        if self.storage != self.accumulate:
            if add:
                torch.addmm(out, left, right, out_dtype=self.accumulate, out=out)
            else:
                torch.mm(left, right, out_dtype=self.accumulate, out=out)
            return
        with _multiply_in_bfloat16(self.narrow):
            if add:
                out.addmm_(left, right)
            else:
                torch.mm(left, right, out=out)


def in_blocks(work: Callable[[slice], Rows], logits_CV: Tensor) -> Rows:
    """Run `work` on slices of the rows and put its figures together."""
    count, vocabulary = logits_CV.shape
    block_bytes = 2**28 if logits_CV.device.type == "cuda" else 2**23
    step = max(1, block_bytes // (vocabulary * logits_CV.element_size()))
    parts = [work(slice(at, min(at + step, count))) for at in range(0, count, step)]
    columns = zip(*(part[:4] for part in parts), strict=True)
    loss, student, teacher, same = (torch.cat(column) for column in columns)
    return Rows(loss, student, teacher, same.to(loss.dtype), None)


@contextmanager
def _multiply_in_bfloat16(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
