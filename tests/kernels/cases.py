"""Small problems for the divergence kernels, and how far a result is from the float64 truth."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from selfkd.kernels import Divergence, fused_linear_divergence, sparse_linear_divergence
from selfkd.kernels.cpu import library

BACKENDS = ["torch"] if isinstance(library(), str) else ["torch", "cpu"]
FIGURES = ("per_token_N", "student_entropy_N", "teacher_entropy_N", "agreement_N")
MIXED = ("jsd", "skew_kl", "skew_reverse_kl")
Result = tuple[Divergence, list[Tensor]]
"""What a call returned, and the gradients of three times its loss."""


@dataclass(frozen=True)
class Case:
    """Inputs of one call; the first three want gradients."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None = None
    token_weight: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another dtype."""
        names = ("hidden", "weight", "bias", "teacher_hidden", "teacher_weight", "teacher_bias")
        return self._each(names, dtype)

    def on(self, device: str) -> "Case":
        return self._each([field.name for field in fields(self)], device)

    def _each(self, names: Iterable[str], to: torch.dtype | str) -> "Case":
        tensors = {name: getattr(self, name) for name in names}
        return replace(
            self, **{n: None if t is None else t.detach().to(to) for n, t in tensors.items()}
        )

    def leaves(self) -> list[Tensor]:
        given = (self.hidden, self.weight, self.bias)
        return [tensor.detach().requires_grad_() for tensor in given if tensor is not None]

    def dense(self, **options: Any) -> Result:
        def call(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Divergence:
            return fused_linear_divergence(
                hidden,
                weight,
                self.teacher_hidden,
                self.teacher_weight,
                weight_N=self.token_weight,
                student_bias_V=bias,
                teacher_bias_V=self.teacher_bias,
                **options,
            )

        return self._with_gradients(call)

    def sparse(self, ids: Tensor, logprobs: Tensor, **options: Any) -> Result:
        def call(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Divergence:
            return sparse_linear_divergence(
                hidden,
                weight,
                ids,
                logprobs,
                weight_N=self.token_weight,
                student_bias_V=bias,
                **options,
            )

        return self._with_gradients(call)

    def top(self, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities of the teacher's k likeliest tokens."""
        logits = self.teacher_hidden.double() @ self.teacher_weight.double().T
        logprobs, ids = (logits / temperature).log_softmax(-1).topk(k)
        return ids, logprobs

    def _with_gradients(self, call: Callable[..., Divergence]) -> Result:
        leaves = self.leaves()
        result = call(*leaves)
        return result, list(torch.autograd.grad(3 * result.loss, leaves))


def random_case(
    tokens: int = 19,
    hidden: int = 13,
    vocabulary: int = 203,
    *,
    dtype: torch.dtype = torch.float64,
    teacher_hidden: int | None = None,
    bias: bool = True,
    seed: int = 0,
) -> Case:
    """Logits of a few nats; a third of the tokens have no weight."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    taught = teacher_hidden or hidden
    weight = torch.rand(tokens, generator=source) + 0.5
    weight[::3] = 0
    return Case(
        normal(tokens, hidden),
        normal(vocabulary, hidden) / 2,
        normal(vocabulary) if bias else None,
        normal(tokens, taught),
        normal(vocabulary, taught) / 2,
        normal(vocabulary) if bias else None,
        weight,
    )


def logits_case(student: Tensor, teacher: Tensor) -> Case:
    """A case whose logits are exactly these [N, V] float64 values: hidden states pick columns."""
    hidden = torch.eye(len(student), dtype=student.dtype)
    return Case(hidden, student.T.contiguous(), None, hidden, teacher.T.contiguous())


def apart(value: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    gap = (value.detach().double() - truth.detach().double()).norm()
    return float(gap / truth.detach().double().norm().clamp_min(1e-12))


def errors(got: Result, truth: Result) -> dict[str, float]:
    """Relative errors of the loss, of each figure and of each gradient."""
    found = {"loss": apart(got[0].loss, truth[0].loss)}
    for name in FIGURES:
        found[name] = apart(getattr(got[0], name), getattr(truth[0], name))
    for name, value, true in zip(("hidden", "weight", "bias"), got[1], truth[1], strict=False):
        found[name] = apart(value, true)
    return found
