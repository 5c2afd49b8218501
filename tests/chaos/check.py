"""What must hold of a run that was shot at and resumed to its end."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from selfkd.repair import check_run
from tests.chaos.world import World

COMMITTED = (
    "rounds/*/*/[0-9]*.parquet",
    "rounds/*/*/manifest.json",
    "policies/round-*/MANIFEST.json",
)


@dataclass(frozen=True)
class Recorded:
    """What a run had committed at some moment."""

    files: dict[str, str]
    """Digests of shards and manifests."""
    judged: frozenset[str]
    """Samples whose verdicts were recorded."""
    calls: int
    """Calls that the judge had had."""


def recorded(run: Path, world: World) -> Recorded:
    """Look now; to be done while nothing works on the run."""
    judged = frozenset(r["sample_id"] for r in rows(run, "*/*-judge*", ["sample_id"]))
    return Recorded(snapshot(run), judged, len(world.judged()))


def snapshot(run: Path) -> dict[str, str]:
    """Digest of every committed shard and manifest."""
    files = [file for pattern in COMMITTED for file in run.glob(pattern)]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rows(run: Path, pattern: str, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of every shard of the steps that match."""
    files = sorted(run.glob(f"rounds/{pattern}/[0-9]*.parquet"))
    return [row for f in files for row in pq.read_table(f, columns=columns).to_pylist()]


def lost(run: Path, world: World, before: Recorded) -> Iterator[str]:
    """What was recorded then and is not so any more, or was done again."""
    now = snapshot(run)
    for name, digest in before.files.items():
        if now.get(name) != digest:
            yield f"{name} was {'changed' if name in now else 'lost'}"
    if again := before.judged & set(world.judged()[before.calls :]):
        yield f"{len(again)} recorded samples were judged again"


def wrong(run: Path, world: World) -> Iterator[str]:
    """What is missing from a finished run, doubled, or does not fit."""
    policy = "base"
    for number in range(world.rounds + 1):
        yield from _sampled(run, f"{number:03d}", "", world.prompts, world.samples, policy)
        yield from _sampled(run, f"{number:03d}", "-heldout", world.heldout, 1, policy)
        if number < world.rounds:
            yield from _trained(run, number, policy, world)
            policy = f"round-{number + 1}"
    names = sorted(p.name for p in (run / "policies").iterdir())
    if names != [f"round-{n + 1:03d}" for n in range(world.rounds)]:
        yield f"policies are {names}"
    yield from (f"{p.path}: {p.what}" for p in check_run(run))
    yield from _told(run, world)


def _sampled(run: Path, round: str, label: str, prompts: int, n: int, policy: str) -> Iterator[str]:
    """Every prompt is completed n times by that policy, and each sample judged once."""
    place = f"round {round}{label}"
    asked = [r["id"] for r in rows(run, f"{round}/*-prompts{label}", ["id"])]
    samples = rows(run, f"{round}/*-generate{label}", ["id", "prompt_id", "policy"])
    verdicts = rows(run, f"{round}/*-judge{label}", ["sample_id", "status"])
    if len(asked) != prompts:
        yield f"{place}: {len(asked)} prompts"
    ids = Counter(s["id"] for s in samples)
    if set(ids.values()) != {1} or Counter(s["prompt_id"] for s in samples) != Counter(asked * n):
        yield f"{place}: {len(samples)} samples, {len(ids)} of them different"
    if Counter(v["sample_id"] for v in verdicts) != ids:
        yield f"{place}: {len(verdicts)} verdicts on {len(samples)} samples"
    if odd := Counter(v["status"] for v in verdicts if v["status"] != "ok"):
        yield f"{place}: verdicts are {dict(odd)}"
    if {s["policy"] for s in samples} != {policy}:
        yield f"{place}: made by { ({s['policy'] for s in samples}) }, not {policy}"


def _trained(run: Path, number: int, policy: str, world: World) -> Iterator[str]:
    """What was kept was learnt from, once, from that policy."""
    round = f"{number:03d}"
    decisions = rows(run, f"{round}/*-keep", ["sample_id", "kept"])
    kept = Counter(d["sample_id"] for d in decisions if d["kept"])
    examples = rows(run, f"{round}/*-train", ["sample_ids"])
    if len(decisions) != world.prompts * world.samples:
        yield f"round {round}: {len(decisions)} decisions"
    if Counter(e["sample_ids"][0] for e in examples) != kept or len(kept) != (
        world.prompts * world.kept
    ):
        yield f"round {round}: {len(examples)} examples of {len(kept)} kept samples"
    for train in run.glob(f"rounds/{round}/*-train"):
        log = [json.loads(line)["step"] for line in (train / "log.jsonl").read_text().splitlines()]
        if log != list(range(1, world.steps + 1)):
            yield f"round {round}: optimiser steps {log}, and not {world.steps}"
        manifest = json.loads((train / "manifest.json").read_text())
        made = json.loads((run / f"policies/round-{number + 1:03d}/MANIFEST.json").read_text())
        if (manifest["summary"]["start"], made["start"]) != (policy, policy):
            yield f"round {round}: trained from {made['start']}, and not from {policy}"
        if manifest["fingerprint"] != made["fingerprint"]:
            yield f"round {round}: its policy is another training's"


def _told(run: Path, world: World) -> Iterator[str]:
    """Events and metrics are whole."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    if [e["seq"] for e in events] != list(range(1, len(events) + 1)):
        yield "events are not numbered one by one"
    if events[-1]["event"] != "run_finished":
        yield f"the last event is {events[-1]['event']}"
    finished = Counter((e["round"], e["step"]) for e in events if e["event"] == "step_finished")
    yield from (f"{step} was finished twice" for step, times in finished.items() if times > 1)
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    if [json.loads(line)["round"] for line in metrics] != list(range(world.rounds + 1)):
        yield f"metrics.jsonl has {len(metrics)} rounds"
