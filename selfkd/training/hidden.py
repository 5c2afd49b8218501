"""What a model computes before its output head, and logits of some positions only.

N: predicted tokens, H: hidden size, V: vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from selfkd.errors import UsageError


class Head(NamedTuple):
    """An output head, by its weights."""

    weight_VH: Tensor
    bias_V: Tensor | None

    def detached(self) -> "Head":
        """The same memory without gradients."""
        return Head(self.weight_VH.detach(), None if self.bias_V is None else self.bias_V.detach())

    def copy(self) -> "Head":
        """Memory of its own, without gradients."""
        weight, bias = self.detached()
        return Head(weight.clone(), None if bias is None else bias.clone())

    def rows(self, count: int) -> "Head":
        """The head of the first `count` tokens of the vocabulary."""
        bias = None if self.bias_V is None else self.bias_V[:count]
        return Head(self.weight_VH[:count], bias)


def output_head(model: Any) -> Head:
    """The live weights of a model's output head."""
    head = model.get_output_embeddings()
    return Head(head.weight, getattr(head, "bias", None))


def hidden_states(model: Any, batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """The states from which the tokens in `mask` (B, T - 1) are predicted, row by row, [N, H].

    The model is called as a whole, so whatever wraps it (autocast, an adapter, checkpointing) takes
    part; its head is shown no position.
    """
    taken: list[Tensor] = []

    def take(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        taken.append(inputs[0])
        return (inputs[0][:, :0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(take)
    try:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        hook.remove()
    return taken[0][:, :-1][mask]


def logits_of(model: Any, batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """The logits from which the tokens in `mask` (B, T - 1) are drawn, row by row, [N, V].

    `batch`: what the model takes. Its head is shown the states of these positions alone.
    """

    def select(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][:, :-1][mask][None],)

    inner = getattr(model, "module", model)  # of several workers, each wraps its model
    hook = inner.get_output_embeddings().register_forward_pre_hook(select)
    try:
        return model(**batch, use_cache=False).logits[0]
    finally:
        hook.remove()


@torch.no_grad()
def check_head(model: Any, tokens: tuple[int, ...], name: str) -> None:
    """Raise UsageError unless the logits of a model are its head applied to its hidden states.

    Some models scale or cap their logits afterwards, which a divergence that starts from hidden
    states would miss.
    """
    ids = torch.tensor([tokens[:16]], device=model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    training = model.training
    model.eval()
    logits = model(**batch, use_cache=False).logits[0, :-1].float()
    states = hidden_states(model, batch, torch.ones_like(ids[:, 1:], dtype=torch.bool))
    model.train(training)
    head = output_head(model)
    ours = linear(states.to(head.weight_VH.dtype), *head).float()
    if not torch.allclose(ours, logits, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise UsageError(
            f"the logits of {name} are not its output head applied to its last hidden states",
            where="train",
            remedy="use a model that neither scales nor caps its logits",
        )
