"""What a divergence computation returns, and what a chunk of it does."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Divergence:
    """The loss and what is known about each token once it has been computed.

    All but `loss` are detached, at the temperature that was asked for, and 0 for skipped tokens.
    """

    loss: Tensor
    """Scalar: sum over tokens of weight times divergence, over the normalizer. Differentiable."""
    per_token_N: Tensor
    """Unweighted divergence, in nats (for tvd: in [0, 1])."""
    student_entropy_N: Tensor
    """Nats."""
    teacher_entropy_N: Tensor
    """Nats; for a sparse teacher that of its k+1 buckets, a lower bound."""
    agreement_N: Tensor
    """1 where some token is among the most likely ones of both, else 0."""
    backend: str
    """What ran: reference, torch, cpu or triton."""


class Rows(NamedTuple):
    """Figures of the tokens of one chunk; C: tokens, V: vocabulary."""

    loss_C: Tensor
    student_entropy_C: Tensor
    teacher_entropy_C: Tensor
    agreement_C: Tensor
    gradient_CV: Tensor | None
    """d(scale * loss)/d(student logits), or None where no gradient was asked for."""
