"""The compiled engines for CPUs: row work in C++, and with AVX-512 the products; logits in float32.

C: tokens of a chunk, H: hidden size, V: vocabulary.
"""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from selfkd.kernels.build import NARROW, Unavailable, cpu_flags, has_products, load
from selfkd.kernels.engine import TorchEngine
from selfkd.kernels.measures import KINDS, Measure
from selfkd.kernels.result import Rows

LINE = 16
"""Floats in a cache line."""


@cache
def library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    try:
        lib = load()
    except Unavailable as error:
        return str(error)
    p, i, n, f = c_void_p, c_int, c_int64, c_float
    signatures = {
        "selfkd_rows": (i, i, f, f, p, p, n, p, p, n, n, n, i, i),
        "selfkd_softmax": (f, p, n, p, n, n, i),
        "selfkd_spread": (i, f, p, n, p, p, n, n, n, i),
    }
    if has_products():
        signatures |= {
            "selfkd_project": (i, i, p, p, n, p, p, n, n, n, n, i),
            "selfkd_hidden_gradient": (i, i, p, n, p, n, p, n, n, n, i),
            "selfkd_weight_gradient": (i, p, n, p, n, p, n, n, n, i, i),
        }
    for name, types in signatures.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = types, None
    return lib


def cpu_engine(multiply: torch.dtype, device: torch.device) -> "RowsEngine":
    """The one for this processor. Raises Unavailable where none runs, and for other dtypes."""
    return (CpuEngine if has_products() else RowsEngine)(multiply, device)


class RowsEngine(TorchEngine):
    """Row work compiled, products of float32 by torch, to which bfloat16 factors are widened."""

    name = "cpu"

    def __init__(self, multiply: torch.dtype, device: torch.device) -> None:
        if device.type != "cpu":
            raise Unavailable(f"the tensors are on {device}")
        lib = library()
        if isinstance(lib, str):
            raise Unavailable(lib)
        if multiply not in (torch.float32, torch.bfloat16):
            raise Unavailable(f"{multiply} is not compiled")
        super().__init__(torch.float32, device)
        self.lib = lib

    def row_stride(self, vocabulary: int) -> int:
        # A line more than needed: rows a multiple of 4 KiB apart would share their cache sets.
        return _whole_lines(vocabulary) + LINE

    def rows(
        self,
        student_CV: Tensor,
        teacher_CV: Tensor,
        scale_C: Tensor,
        measure: Measure,
        into_CV: Tensor | None,
    ) -> Rows:
        count, vocabulary = student_CV.shape
        figures = torch.empty(4, count)
        scale = scale_C.contiguous()
        self.lib.selfkd_rows(
            self.narrow,
            KINDS.index(measure.kind),
            measure.teacher_share,
            1 / measure.temperature,
            student_CV.data_ptr(),
            teacher_CV.data_ptr(),
            student_CV.stride(0),
            scale.data_ptr(),
            figures.data_ptr(),
            count,
            vocabulary,
            _whole_lines(vocabulary),
            into_CV is not None,
            torch.get_num_threads(),
        )
        return Rows(*figures, None if into_CV is None else self._written(student_CV))  # pyright: ignore[reportCallIssue]

    def softmax(self, logits_CV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        figures = torch.empty(3, len(logits_CV))
        self.lib.selfkd_softmax(
            1 / temperature,
            logits_CV.data_ptr(),
            logits_CV.stride(0),
            figures.data_ptr(),
            *logits_CV.shape,
            torch.get_num_threads(),
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
        log_sum, factor = log_sum_C.contiguous(), factor_C.contiguous()
        self.lib.selfkd_spread(
            self.narrow,
            1 / temperature,
            logits_CV.data_ptr(),
            logits_CV.stride(0),
            log_sum.data_ptr(),
            factor.data_ptr(),
            *logits_CV.shape,
            _whole_lines(logits_CV.shape[1]),
            torch.get_num_threads(),
        )
        return self._written(into_CV)

    def _written(self, logits_CV: Tensor) -> Tensor:
        """The factors that were written over logits, from the start of each row."""
        return logits_CV.view(self.multiply)[:, : logits_CV.shape[1]]


class CpuEngine(RowsEngine):
    """Products compiled too: of bfloat16 where the processor has them, else widened."""

    def __init__(self, multiply: torch.dtype, device: torch.device) -> None:
        super().__init__(multiply, device)
        self.narrow = multiply == torch.bfloat16 and NARROW in cpu_flags()
        self.multiply = torch.bfloat16 if self.narrow else torch.float32

    def prepare(self, weight_VH: Tensor) -> Tensor:
        """As stored: panels are packed, and converted, where they are used."""
        if weight_VH.dtype not in (torch.float32, torch.bfloat16):
            weight_VH = weight_VH.float()
        return weight_VH if weight_VH.stride(1) == 1 else weight_VH.contiguous()

    def project(
        self, hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, out_CV: Tensor
    ) -> None:
        hidden = self._whole_lanes(hidden_CH)
        bias = None if bias_V is None else bias_V.contiguous()
        self.lib.selfkd_project(
            self.narrow,
            weight_VH.dtype == torch.bfloat16,
            hidden.data_ptr(),
            weight_VH.data_ptr(),
            weight_VH.stride(0),
            None if bias is None else bias.data_ptr(),
            out_CV.data_ptr(),
            out_CV.stride(0),
            len(hidden),
            hidden_CH.shape[1],
            len(weight_VH),
            torch.get_num_threads(),
        )

    def hidden_gradient(self, gradient_CV: Tensor, weight_VH: Tensor) -> Tensor:
        gradient = self._factor(gradient_CV)
        (count, vocabulary), hidden = gradient_CV.shape, weight_VH.shape[1]
        out = torch.empty(count, hidden)
        self.lib.selfkd_hidden_gradient(
            self.narrow,
            weight_VH.dtype == torch.bfloat16,
            gradient.data_ptr(),
            gradient.stride(0) * gradient.itemsize // 4,
            weight_VH.data_ptr(),
            weight_VH.stride(0),
            out.data_ptr(),
            count,
            hidden,
            vocabulary,
            torch.get_num_threads(),
        )
        return out

    def weight_gradient(
        self, gradient_CV: Tensor, hidden_CH: Tensor, out_VH: Tensor, first: bool
    ) -> None:
        gradient = self._factor(gradient_CV)
        self.lib.selfkd_weight_gradient(
            self.narrow,
            gradient.data_ptr(),
            gradient.stride(0),
            hidden_CH.data_ptr(),
            hidden_CH.stride(0),
            out_VH.data_ptr(),
            *hidden_CH.shape,
            len(out_VH),
            first,
            torch.get_num_threads(),
        )

    def _factor(self, gradient_CV: Tensor) -> Tensor:
        """Rounded, with rows of whole lanes; what `rows` returned already is."""
        if gradient_CV.dtype == self.multiply:
            return gradient_CV
        return self._whole_lanes(gradient_CV.to(self.multiply))

    def _whole_lanes(self, matrix: Tensor) -> Tensor:
        odd = self.narrow and matrix.shape[1] % 2
        return pad(matrix, (0, 1)) if odd else matrix.contiguous()


def _whole_lines(count: int) -> int:
    return -(-count // LINE) * LINE
