"""The parameters that a training changes, and what they are shown as."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def trained(model: Any) -> list[Tensor]:
    """The parameters of a model that get gradients."""
    return [p for p in model.parameters() if p.requires_grad]


def show(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Put other memory behind parameters; what was there is left as it is."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value
