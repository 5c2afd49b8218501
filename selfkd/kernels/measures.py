"""The divergences of a student q from a teacher p, and their gradients, on log-probabilities.

B: rows, V: vocabulary. A gradient is that of the divergence with respect to the logits whose
softmax is q, so the caller divides by the temperature. Equations: docs/kernel.md.
"""

from dataclasses import dataclass
from math import isfinite, log

import torch
from torch import Tensor

from selfkd.errors import UsageError

KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
FLOOR = -1e30
"""Log-probabilities below this count as this, so that 0 times a log-probability is 0."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A kind of divergence, checked, with skewed kinds at their limit replaced by that limit."""

    kind: str
    beta: float
    temperature: float

    @property
    def teacher_share(self) -> float:
        """b in the mixture m = b p + (1 - b) q."""
        return 1 - self.beta if self.kind == "skew_reverse_kl" else self.beta


def measure(kind: str, beta: float, temperature: float) -> Measure:
    """Check what the caller asked for.

    Raises UsageError for an unknown kind, a temperature that is not positive, and a beta at which
    the divergence vanishes: 0 and 1 for jsd, 1 for the skewed kinds.
    """
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r} is unknown", remedy=f"Use one of {', '.join(KINDS)}.")
    if not (isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature {temperature} is not a positive number")
    mixed = kind in ("jsd", "skew_kl", "skew_reverse_kl")
    if mixed and not 0 <= beta <= 1:
        raise UsageError(f"beta {beta} is outside [0, 1]")
    if kind == "jsd" and beta in (0, 1):
        limit = "reverse_kl" if beta else "forward_kl"
        raise UsageError(
            f"jsd with beta {beta} is 0 whatever the models say",
            remedy=f"Use kind={limit!r}, which jsd/(beta (1 - beta)) tends to.",
        )
    if mixed and beta == 1:
        raise UsageError(f"{kind} with beta 1 compares a model with itself and is 0")
    if mixed and beta == 0:
        kind = "forward_kl" if kind == "skew_kl" else "reverse_kl"
    return Measure(kind, float(beta) if mixed else 0.5, float(temperature))


def log_softmax(logits_BV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities, floored."""
    return torch.log_softmax(logits_BV / temperature, dim=-1).clamp_min(FLOOR)


def definition(log_p_BV: Tensor, log_q_BV: Tensor, measure: Measure) -> Tensor:
    """The divergence of each row, written as in the papers; autograd gives its gradient."""
    p, q = log_p_BV.exp(), log_q_BV.exp()
    if measure.kind == "forward_kl":
        return (p * (log_p_BV - log_q_BV)).sum(-1)
    if measure.kind == "reverse_kl":
        return (q * (log_q_BV - log_p_BV)).sum(-1)
    if measure.kind == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    share = measure.teacher_share
    log_m = torch.logaddexp(log_p_BV + log(share), log_q_BV + log(1 - share))
    from_teacher = (p * (log_p_BV - log_m)).sum(-1)
    from_student = (q * (log_q_BV - log_m)).sum(-1)
    if measure.kind == "skew_kl":
        return from_teacher
    if measure.kind == "skew_reverse_kl":
        return from_student
    return measure.beta * from_teacher + (1 - measure.beta) * from_student


def closed_form(log_p_BV: Tensor, log_q_BV: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """Divergence [B] and gradient [B, V], stable in float32.

    Every summand of the divergence carries a multiple of q - p, whose sum is 0: it makes the
    summand non-negative and cancels the first-order effect of an error in a row's normalizer.
    """
    p, q = log_p_BV.exp(), log_q_BV.exp()
    gap = log_p_BV - log_q_BV
    if measure.kind == "forward_kl":
        return (p * gap + (q - p)).sum(-1), q - p
    if measure.kind == "reverse_kl":
        return ((p - q) - q * gap).sum(-1), _centred(-q * gap, q)
    if measure.kind == "tvd":
        return 0.5 * (p - q).abs().sum(-1), _centred(0.5 * q * torch.sign(-gap), q)
    share = measure.teacher_share
    log_p_over_m, log_q_over_m = _against_mixture(gap, share)
    if measure.kind == "jsd":
        pull = (1 - share) * q * log_q_over_m
        return (share * p * log_p_over_m + pull).sum(-1), _centred(pull, q)
    if measure.kind == "skew_kl":
        loss = p * log_p_over_m + (1 - share) * (q - p)
        return loss.sum(-1), _centred((share - 1) * q * log_p_over_m.expm1(), q)
    loss = q * log_q_over_m + share * (p - q)
    pull = q * (log_q_over_m - (1 - share) * log_q_over_m.expm1())
    return loss.sum(-1), _centred(pull, q)


def _centred(pull_BV: Tensor, q_BV: Tensor) -> Tensor:
    """q (c - sum q c), given q c. Adding a constant to c changes nothing but rounding."""
    return pull_BV - q_BV * pull_BV.sum(-1, keepdim=True)


def _against_mixture(gap_BV: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """log(p/m) and log(q/m) from gap = log(p/q), without overflow."""
    t = torch.expm1(-gap_BV.abs())
    above = gap_BV >= 0
    larger = torch.log1p(torch.where(above, (1 - share) * t, share * t))  # log(m / max(p, q))
    log_p_over_m = torch.where(above, -larger, gap_BV - larger)
    return log_p_over_m, torch.where(above, -larger - gap_BV, -larger)


def entropy(log_p_BV: Tensor) -> Tensor:
    """Nats."""
    return -(log_p_BV.exp() * log_p_BV).sum(-1)


def agreement(teacher_BV: Tensor, student_BV: Tensor) -> Tensor:
    """Whether a token is among the most likely of both; logits or log-probabilities."""
    tops = (scores == scores.amax(-1, keepdim=True) for scores in (teacher_BV, student_BV))
    return torch.logical_and(*tops).any(-1)
