"""What a backend has to do for one chunk of tokens, and how torch alone does it.

C: tokens of a chunk, H: hidden size, V: vocabulary.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from selfkd.kernels.measures import FLOOR, Measure, agreement, closed_form, entropy, log_softmax
from selfkd.kernels.products import by_onednn
from selfkd.kernels.result import Rows

BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**26}
"""Of the logits whose rows torch works on at once; each operation makes a temporary as large."""


class Engine(Protocol):
    """The matrix products and the row work of a chunk. Logits and sums are `accumulate` wide."""

    name: str
    multiply: torch.dtype
    """What the factors of a product are rounded to."""
    accumulate: torch.dtype
    gradient_chunks: int
    """Chunks whose gradients are kept beside the logits, in the factors' dtype, to be multiplied
    at once; 0 where they are written over the student's logits."""

    def row_stride(self, vocabulary: int) -> int:
        """Elements from one row of logits to the next; what is over holds -inf."""
        ...

    def sums(self, head: torch.dtype) -> torch.dtype:
        """What the gradient of a head of that dtype is summed in."""
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
        into_CV: Tensor | None,
    ) -> Rows:
        """Divergences; their gradient, where wanted, into `into_CV`, which may be the student's.

        The teacher's logits are gone afterwards.
        """
        ...

    def softmax(self, logits_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row the largest logit, and at the temperature the log of the sum of exponentials
        (-inf where all logits are) and the entropy."""
        ...

    def spread(
        self,
        logits_CV: Tensor,
        log_sum_C: Tensor,
        factor_C: Tensor,
        temperature: float,
        into_CV: Tensor,
    ) -> Tensor:
        """factor * exp(logits / temperature - log_sum), into `into_CV`, which may be the logits."""
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
    gradient_chunks = 0

    def __init__(self, multiply: torch.dtype, device: torch.device) -> None:
        self.multiply = multiply
        self.accumulate = torch.float64 if multiply == torch.float64 else torch.float32
        self.device = device
        self.narrow = multiply == torch.bfloat16
        self.storage = multiply if device.type == "cuda" else self.accumulate

    def row_stride(self, vocabulary: int) -> int:
        return vocabulary

    def sums(self, head: torch.dtype) -> torch.dtype:
        return self.accumulate

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
        into_CV: Tensor | None,
    ) -> Rows:
        def block(part: slice) -> tuple[Tensor, ...]:
            student, teacher = student_CV[part], teacher_CV[part]
            log_q = log_softmax(student, measure.temperature)
            log_p = log_softmax(teacher, measure.temperature)
            loss, pull = closed_form(log_p, log_q, measure)
            same = agreement(teacher, student).to(loss.dtype)
            if into_CV is not None:
                scale = scale_C[part].unsqueeze(-1) / measure.temperature
                torch.mul(pull, scale, out=into_CV[part])
            return loss, entropy(log_q), entropy(log_p), same

        return Rows(*_in_blocks(block, student_CV), into_CV)  # pyright: ignore[reportCallIssue]

    def softmax(self, logits_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        def block(part: slice) -> tuple[Tensor, ...]:
            scaled = logits_CV[part] / temperature
            log_sum = torch.logsumexp(scaled, -1, keepdim=True)
            log_q = scaled.sub_(log_sum.clamp_min(FLOOR)).clamp_min_(FLOOR)
            return logits_CV[part].amax(-1), log_sum.squeeze(-1), entropy(log_q)

        top, log_sum, nats = _in_blocks(block, logits_CV)
        return top, log_sum, nats

    def spread(
        self,
        logits_CV: Tensor,
        log_sum_C: Tensor,
        factor_C: Tensor,
        temperature: float,
        into_CV: Tensor,
    ) -> Tensor:
        into = torch.div(logits_CV, temperature, out=into_CV)
        into.sub_(log_sum_C.clamp_min(FLOOR).unsqueeze(-1)).exp_()
        return into.mul_(factor_C.unsqueeze(-1))

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
                torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
            else:
                torch.mm(left, right, out_dtype=out.dtype, out=out)
            return
        with by_onednn(self.narrow):
            if add:
                out.addmm_(left, right)
            else:
                torch.mm(left, right, out=out)


def _in_blocks(
    work: Callable[[slice], tuple[Tensor, ...]], logits_CV: Tensor
) -> tuple[Tensor, ...]:
    """Run `work` on slices of the rows and put what it returns together."""
    count, vocabulary = logits_CV.shape
    block_bytes = BLOCK_BYTES.get(logits_CV.device.type, 2**23)
    step = max(1, block_bytes // (vocabulary * logits_CV.element_size()))
    parts = [work(slice(at, min(at + step, count))) for at in range(0, count, step)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
