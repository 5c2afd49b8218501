"""The trainer process. It never loads vLLM, and the driver that names its class loads no torch."""

import os
import socket
from pathlib import Path

from selfkd.errors import InfrastructureError
from selfkd.files import writing
from selfkd.hardware import cores
from selfkd.imports import large_imports
from selfkd.training.base import LESS_MEMORY, TrainJob, TrainReport


class LocalTrainer:
    """Trains in its own process, alone or as one of several; see `Trainer` in `base.py`."""

    def __init__(self, threads: int | None = None) -> None:
        with large_imports():
            import torch

            # What its trainings import, so that it is there before the first one.
            from selfkd.training import sft  # noqa: F401
            from selfkd.training.trainer import Workbench

        torch.set_num_threads(threads or cores())
        self._bench = Workbench()

    def meeting_point(self) -> tuple[str, int]:
        """An address of this machine, and a port that is free, where workers can meet."""
        from ray.util import get_node_ip_address

        with socket.socket() as free:
            free.bind(("", 0))
            return get_node_ip_address(), free.getsockname()[1]

    def join(self, rank: int, workers: int, host: str, port: int) -> None:
        """Be one of several workers from now on (DDP: NCCL on GPU, gloo on CPU)."""
        import torch

        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",  # Ray shows each process its own card only
            "WORLD_SIZE": str(workers),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }
        if not torch.cuda.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"

    def train(self, job: TrainJob) -> TrainReport:
        """Train on the job's examples and save the policy to `out_dir`.

        Raises DataError for an empty set, UsageError for a start that is not a safe model
        directory, Diverged for a loss, gradient or policy that is not finite, InfrastructureError
        for want of memory, disk or another worker; nothing is committed then.
        """
        try:
            with writing(Path(job.out_dir), _size(Path(job.start_path))):
                return self._train(job)
        except (MemoryError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            if _no_memory(error):
                raise InfrastructureError(
                    f"the trainer has no more memory ({reason})", where="train", remedy=LESS_MEMORY
                ) from error
            if _no_connection(error):
                raise InfrastructureError(
                    f"a trainer lost its connection to another one ({reason})",
                    where="train",
                    remedy="see that all nodes of the cluster are up and reachable, then resume",
                ) from error
            raise

    def _train(self, job: TrainJob) -> TrainReport:
        return self._bench.train(job)

    def merge(self, adapter: str, start: str, out: str) -> None:
        """Write the model that a stored adapter makes of its start to the new directory `out`."""
        self._bench.merge(adapter, start, out)


def _size(path: Path) -> int:
    """Bytes of a model's weights; what is made of it takes about as much."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _no_memory(error: Exception) -> bool:
    """Whether torch or Python asked the system for more memory than there is."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)


def _no_connection(error: Exception) -> bool:
    """Whether one of several workers cannot reach another; gloo's errors have no class."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
