"""Two samplers, two training workers with half of the weights each, rounds sampled ahead, a copy
elsewhere, and a kill.

All of it at once takes a minute, so it runs only where SELFKD_LONG is set.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.chaos.check import lost, recorded, rows
from tests.chaos.processes import Driver
from tests.chaos.world import tiny_world

pytestmark = [
    pytest.mark.lengthy,
    pytest.mark.skipif(
        not os.environ.get("SELFKD_LONG"), reason="takes a minute: set SELFKD_LONG=1"
    ),
]


def writers(run: Path, round: int) -> set[str]:
    """The policies that wrote a round's samples."""
    return {r["policy"] for r in rows(run, f"{round:03d}/*-generate", ["policy"])}


def test_all_of_it_at_once_survives_a_kill(tmp_path):
    folder, storage = tmp_path / "project", tmp_path / "storage"
    folder.mkdir()
    world = tiny_world(folder, prompts=32, rounds=3)
    arguments = [
        "run", "run.yaml", "--name", "all", *world.overrides, "engine.replicas=2",
        "cluster.sampler_cpus=0.5", "cluster.trainer_workers=2", "cluster.trainer_fsdp=true",
        "engine.overlap=true", f"storage=file://{storage}",
    ]  # fmt: skip
    run = folder / "runs" / "all"
    killed = Driver(folder, *arguments)
    killed.wait_for(lambda: any(run.glob("rounds/001/*-train/log.jsonl")))
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    before = recorded(run, world)

    driver = Driver(folder, "resume", "runs/all")
    assert driver.end() == 0, driver.said()
    assert list(lost(run, world, before)) == []
    for number in range(world.rounds + 1):
        ids = [r["id"] for r in rows(run, f"{number:03d}/*-generate", ["id"])]
        judged = [r["sample_id"] for r in rows(run, f"{number:03d}/*-judge", ["sample_id"])]
        assert len(ids) == len(set(ids)) == world.prompts * world.samples
        assert sorted(ids) == sorted(judged)
    assert [writers(run, n) for n in range(4)] == [{"base"}, {"base"}, {"round-1"}, {"round-3"}]
    for number in range(world.rounds):
        (log,) = run.glob(f"rounds/{number:03d}/*-train/log.jsonl")
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == list(range(1, world.steps + 1))

    copy = storage / "all"
    mirrored = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert {Path("run.yaml"), Path("metrics.jsonl"), Path("events.jsonl")} < set(mirrored)
    for path, data in mirrored.items():
        assert (run / path).read_bytes() == data
    assert recorded(copy, world).files == recorded(run, world).files
    assert driver.leftovers() == []
