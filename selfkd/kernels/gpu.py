"""The engine for NVIDIA GPUs: products by cuBLAS, the work on rows in one Triton kernel.

C: tokens of a chunk, V: vocabulary.
"""

from functools import cache
from subprocess import SubprocessError

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from selfkd.kernels import tiles
from selfkd.kernels.build import Unavailable
from selfkd.kernels.engine import TorchEngine
from selfkd.kernels.measures import KINDS, Measure
from selfkd.kernels.result import Rows


class TritonEngine(TorchEngine):
    """float32 or bfloat16 factors, float32 logits. On a CPU only under the Triton interpreter."""

    name = "triton"
    gradient_chunks = 3

    def __init__(self, multiply: torch.dtype, device: torch.device) -> None:
        if multiply not in (torch.float32, torch.bfloat16):
            raise Unavailable(f"{multiply} is left to torch")
        if device.type != "cuda" and not triton.knobs.runtime.interpret:  # pyright: ignore[reportAttributeAccessIssue]
            raise Unavailable(f"the tensors are on {device}")
        super().__init__(multiply, device)
        problem = _probe(device)
        if problem:
            raise Unavailable(problem)

    def row_stride(self, vocabulary: int) -> int:
        return -(-vocabulary // tiles.ROW) * tiles.ROW

    def sums(self, head: torch.dtype) -> torch.dtype:
        """The head's own, rounded once a group: within twice the error of the last rounding up to
        ten groups, and without a sum that is twice as large as the head."""
        return head if head == self.storage else self.accumulate

    def rows(
        self,
        student_CV: Tensor,
        teacher_CV: Tensor,
        scale_C: Tensor,
        measure: Measure,
        into_CV: Tensor | None,
    ) -> Rows:
        count, new = len(student_CV), student_CV.new_empty
        figures, parts = new(4, count), new(count, 9, tiles.PARTS)
        met = student_CV.new_zeros(1 + 2 * count, dtype=torch.int32)
        into = student_CV if into_CV is None else into_CV
        tiles.divergence_rows[lambda chosen: (count * chosen["PARTS"],)](
            student_CV,
            teacher_CV,
            student_CV.stride(0),
            into,
            into.stride(0),
            scale_C.contiguous(),
            figures,
            parts,
            met,
            count,
            student_CV.shape[1],
            self.row_stride(student_CV.shape[1]),
            1 / measure.temperature,
            measure.teacher_share,
            KIND=KINDS.index(measure.kind),
            EVEN=measure.teacher_share == 0.5,
            GRADIENT=into_CV is not None,
        )
        return Rows(*figures, into_CV)  # pyright: ignore[reportCallIssue]

    def softmax(self, logits_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        figures = logits_CV.new_empty(3, len(logits_CV))
        tiles.softmax_rows[(len(logits_CV),)](
            logits_CV,
            logits_CV.stride(0),
            figures,
            len(logits_CV),
            self.row_stride(logits_CV.shape[1]),
            1 / temperature,
        )
        top, log_sum, entropy = figures
        return top, log_sum, entropy

    def spread(
        self,
        logits_CV: Tensor,
        log_sum_C: Tensor,
        factor_C: Tensor,
        temperature: float,
        into_CV: Tensor,
    ) -> Tensor:
        tiles.spread_rows[(len(logits_CV),)](
            logits_CV,
            logits_CV.stride(0),
            log_sum_C.contiguous(),
            factor_C.contiguous(),
            into_CV,
            into_CV.stride(0),
            self.row_stride(logits_CV.shape[1]),
            1 / temperature,
        )
        return into_CV


@cache
def _probe(device: torch.device) -> str:
    """Why Triton cannot run here, or nothing: it wants a driver it knows and a C compiler."""
    row, one = tiles.ROW, torch.ones(1, device=device)
    logits = torch.zeros(1, row, device=device)
    try:
        tiles.spread_rows.fn[(1,)](logits, row, one, one, logits, row, row, 1.0, TILE=row)
    except (RuntimeError, OSError, SubprocessError, TritonError) as error:
        return f"Triton failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""
