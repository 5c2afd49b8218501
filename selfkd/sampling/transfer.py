"""Sends weights from GPU to GPU with vLLM's weight transfer; see `sync`. Never been run yet.

The sender is rank 0 of an NCCL group whose other members are the workers of all engines, or, with
`ipc`, a process that shares its card with them and hands out CUDA memory handles.
"""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from selfkd.sampling.desk import Desk


class Sender:
    """Holds one policy's weights on its GPU while it sends them."""

    def __init__(self, backend: Literal["nccl", "ipc"]) -> None:
        self._backend = backend

    def send(self, policy: str, path: str, engines: Sequence[Any]) -> None:
        """Read the HF model directory `path` and have every engine take its weights.

        `engines` are handles of `SamplerActor`; they name the weights `policy` when all is there.
        """
        import ray
        import torch
        from transformers import AutoModelForCausalLM
        from vllm.distributed.weight_transfer.base import ModuleSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        shapes = ray.get([engine.transfer_shape.remote() for engine in engines])
        (dtype,) = {dtype for _, dtype in shapes}
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), use_safetensors=True
        )
        model.to("cuda")
        client: Any = _Client(engines, [workers for workers, _ in shapes])
        transfer = WeightTransferTrainerFactory.trainer_init(
            self._init_info(1 + sum(client.workers)), client=client, source=ModuleSource(model)
        )
        transfer.send_weights()
        client.shutdown_weight_transfer_engine()
        ray.get([engine.took.remote(policy) for engine in engines])
        del model, transfer
        torch.cuda.empty_cache()

    def _init_info(self, world_size: int) -> Any:
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0, packed=True)
        from ray.util import get_node_ip_address
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return NCCLTrainerInitInfo(
            master_address=get_node_ip_address(),
            master_port=port,
            world_size=world_size,
            rank=0,
        )


class _Client:
    """What vLLM's sender asks of the engines, all of them at once.

    vLLM's own Ray client gives every engine the same ranks, which is right for one engine only.
    """

    def __init__(self, engines: Sequence[Any], workers: Sequence[int]) -> None:
        self.engines = engines
        self.workers = workers

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = []
        for i in range(len(self.engines)):
            own = dict(init_info)
            if "rank_offset" in own:
                own["rank_offset"] += sum(self.workers[:i])
            infos.append({"init_info": own})
        self._all("init_weight_transfer_engine", infos)

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [{"update_info": update_info}] * len(self.engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update")

    def shutdown_weight_transfer_engine(self) -> None:
        self._all("shutdown_weight_transfer_engine")

    def _all(self, step: str, infos: Sequence[Any] | None = None) -> None:
        import ray

        given = [(step,)] * len(self.engines) if infos is None else [(step, i) for i in infos]
        pairs = zip(self.engines, given, strict=True)
        ray.get([engine.transfer.remote(*arguments) for engine, arguments in pairs])


class Receiver:
    """The part of a sampler's process that takes weights from a `Sender`."""

    _desk: "Desk"

    def transfer_shape(self) -> tuple[int, str]:
        """Workers of the engine, and the dtype it computes in."""
        engine: Any = self._desk.engine
        return engine.workers, engine.dtype

    def transfer(self, step: str, *info: Any) -> None:
        """One step of vLLM's protocol; the engine holds no policy until `took`."""
        self._desk.alone(lambda engine: engine.transfer(step, *info))  # type: ignore[attr-defined]

    def took(self, policy: str) -> None:
        """All weights of `policy` arrived."""
        self._desk.alone(lambda engine: engine.took(policy))  # type: ignore[attr-defined]
