"""Carries a training over a weight sync: weights, optimiser and moving average in float32.

The policy that the sampler gets is rounded and merged; going on from it would lose the optimiser's
moments and round again at every sync.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR

from selfkd.training.parameters import trained


def save_state(trainer: Any, path: Path) -> None:
    """Write what `load_state` needs."""
    tensors = {f"weight.{i}": p for i, p in enumerate(trained(trainer.model))}
    for i, entry in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(v) for name, v in entry.items()}
    tensors |= {f"teacher.{i}": t for i, t in enumerate(_average(trainer))}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def continue_training(trainer: Any, first: int, total: int, state: Path | None) -> None:
    """Put a trainer that was just built where an earlier one was after `first` of `total` steps."""
    trainer.create_optimizer_and_scheduler(num_training_steps=total)
    factor = trainer.lr_scheduler.lr_lambdas[0]
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, lambda step: factor(step + first))
    trainer._created_lr_scheduler = False  # or it would be made anew
    trainer.first_step, trainer.planned_steps = first, total
    if state is not None:
        _load_state(trainer, load_file(state))


@torch.no_grad()
def _load_state(trainer: Any, tensors: dict[str, torch.Tensor]) -> None:
    places = {
        "weight": dict(enumerate(trained(trainer.model))),
        "teacher": dict(enumerate(_average(trainer))),
    }
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        part, index, *key = name.split(".", 2)
        if part == "optimizer":
            state.setdefault(int(index), {})[key[0]] = tensor
        else:
            places[part][int(index)].copy_(tensor)
    trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": state})


def _average(trainer: Any) -> list[torch.Tensor]:
    return getattr(getattr(trainer, "teacher", None), "average", [])
