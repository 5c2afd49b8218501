"""Weights that each of several workers holds a part of (FSDP), on one worker."""

from typing import Any

import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.fsdp import fully_shard

from selfkd.training.rounding import RoundedSteps


def test_what_workers_hold_in_parts_is_rounded_for_a_step_and_exact_again(tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo",
        store=FileStore(str(tmp_path / "meeting"), 1),
        rank=0,
        world_size=1,
    )
    try:
        model = torch.nn.Linear(64, 32, bias=False)
        exact = model.weight.detach().clone()
        given = torch.randn(5, 64)
        fully_shard(model)
        weight: Any = model.weight
        rounds: Any = RoundedSteps(model, 3)
        seen = []
        for _ in range(2):
            rounds.on_step_begin()
            # A product with the identity, as the weights of a step are gathered: no view of them.
            seen.append(model(torch.eye(64)).T.detach())
            model(given).sum().backward()
            rounds.on_pre_optimizer_step()
            assert torch.equal(weight.to_local(), exact)
    finally:
        torch.distributed.destroy_process_group()
    for shown in seen:
        assert torch.equal(shown, shown.bfloat16().float()) and not torch.equal(shown, exact)
        assert float((shown - exact).abs().max()) < 2**-8 * float(exact.abs().max())
    assert not torch.equal(*seen)
