"""The parameters that a training changes, and what they are shown as."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def trained(model: Any) -> list[Tensor]:
    """The parameters of a model that get gradients."""
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def values(parameters: Sequence[Tensor]) -> list[Tensor]:
    """What parameters are; of one that workers hold in parts, a copy of this worker's."""
    return [p.to_local().clone() if isinstance(p, DTensor) else p.data for p in parameters]


@torch.no_grad()
def show(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Put other memory behind parameters; what was there is left as it is.

    FSDP gathers parts from memory of its own, so those are overwritten.
    """
    for parameter, value in zip(parameters, values, strict=True):
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(value)
        else:
            parameter.data = value
