"""What a config may say about its processes, and about the cluster that all run on."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from selfkd.options import Options
from selfkd.sampling.sync import SyncName


class EngineConfig(Options):
    """The process that samples."""

    kind: Literal["auto", "vllm", "transformers"] = "auto"
    """auto takes vLLM where it is installed, else transformers (slower)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto takes bfloat16 where the hardware multiplies it fast."""
    max_model_len: int = Field(1024, ge=16)
    """Longest prompt plus completion, in tokens."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences decoded at once."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for attention keys and values on CPU, GiB."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of a card's memory that vLLM takes on GPU; lower it where the trainer stays there."""
    replicas: int = Field(1, ge=1)
    """Engines that share the work, each in a process of its own, spread over the cluster."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that one engine spreads the model over."""
    sync: SyncName = "reload"
    """How new weights reach an engine (then checked): in place from disk (reload), by a new process
    (restart), or from one GPU to those of all engines (nccl; ipc on a shared card)."""
    residency: Literal["auto", "both", "swap"] = "auto"
    """Sampler and trainer both in memory, or each giving way to the other; auto estimates. On GPU
    an engine that gives way sleeps, elsewhere it ends."""
    overlap: bool = False
    """Sample the next round while the trainer works. Its samples then come from the policy before
    the newest: they are off-policy by one round."""
    max_restarts: int = Field(2, ge=0)
    """Deaths of the sampler in a row before the run gives up."""
    start_timeout: float = Field(300.0, gt=0)
    """Longest start of the engine, seconds."""


class JudgingConfig(Options):
    """The processes that judge."""

    workers: int = Field(1, ge=1)
    """Judge processes."""
    timeout: float = Field(60.0, gt=0)
    """Longest time one sample may take to judge, seconds, without waiting for a model's answer."""
    max_failure_rate: float = Field(0.05, ge=0, le=1)
    """Share of errors and time-outs above which the run stops."""
    max_unscored: float = Field(0.9, ge=0, le=1)
    """Share of samples without a reward, for whatever reason, above which the run stops."""
    cache: bool = True
    """Use and keep verdicts of judges that declare them cacheable (`$SELFKD_CACHE`)."""
    anchors: int = Field(0, ge=0)
    """Samples of the first round that the judge is shown again in each later one, to tell whether
    it drifts, as a judge that is the policy itself will; 0: none."""


class ClusterConfig(Options):
    """The Ray cluster and what each process asks of it."""

    address: str = "local"
    """local starts one here; auto or host:port joins one that this machine is a node of."""
    sampler_gpus: float | None = Field(None, ge=0)
    """GPUs of each sampler; default half of one where there is one, or tensor_parallel_size."""
    trainer_gpus: float | None = Field(None, ge=0)
    """GPUs of the trainer; default half of one where there is one: it shares the sampler's."""
    trainer_workers: int = Field(1, ge=1)
    """Processes that train together, each on its share of every batch (DDP); they divide
    train.batch_size."""
    trainer_fsdp: bool = False
    """Each of these processes holds its share of weights, gradients and optimiser state too (FSDP);
    for SFT of all weights."""
    sampler_cpus: float = Field(0, ge=0)
    """CPUs that each sampler reserves; 0: it takes turns with the trainer."""
    trainer_cpus: float = Field(0, ge=0)
    """CPUs that the trainer reserves, each of its workers."""
    judge_cpus: float = Field(0, ge=0)
    """CPUs that each judge process reserves; with some they spread over the cluster's nodes."""
    timeout: float = Field(120.0, gt=0)
    """Longest wait for the cluster to place a process, seconds."""

    @field_validator("trainer_fsdp")
    @classmethod
    def _among_several(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("trainer_workers") == 1:
            raise ValueError("one worker has nobody to share with: raise cluster.trainer_workers")
        return value
