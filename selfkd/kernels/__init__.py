"""Divergences between a teacher's and a student's next tokens, from hidden states and output heads.

Stands alone: of selfkd it needs `selfkd.errors` only. See docs/kernel.md.
"""

from selfkd.kernels.fused import fused_linear_divergence, sparse_linear_divergence
from selfkd.kernels.measures import KINDS
from selfkd.kernels.result import Divergence

__all__ = ["KINDS", "Divergence", "fused_linear_divergence", "sparse_linear_divergence"]
