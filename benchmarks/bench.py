"""selfkd against a plain script, its own overhead, and its targets: `make bench`.

Both run loops/rest_em.yaml's job from the command line, alternately, and nothing else should run
meanwhile. Both compute in bfloat16 where the processor multiplies it, else in float32. Prints
seconds by stage and their ratio selfkd/plain, then a table of targets, each passed or missed.
Sampled lengths differ from run to run, so tokens are printed too: compare stages by tokens a
second.

A few minutes instead of many, for a look at the bench itself:

    python benchmarks/bench.py --rounds 2 --driver 2000,20000 --batch 16
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from selfkd.hardware import compute_dtype, cores
from selfkd.models import pull
from selfkd.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("evaluate", "generate", "judge", "train", "rest")

Row = dict[str, Any]


# -- whole runs -----------------------------------------------------------------------------------


def run_plain(model: Path, rounds: int, scratch: Path) -> Row:
    """Seconds by stage of the plain script; `rest` is starting, importing, loading and saving."""
    script = str(ROOT / "benchmarks" / "plain_rest_em.py")
    command = [sys.executable, script, "--model", str(model), "--rounds", str(rounds)]
    command += ["--dtype", compute_dtype("auto"), "--out", str(scratch / "plain")]
    wall, output = _timed(command)
    lines = [json.loads(line) for line in output.splitlines()]
    parts = [line["seconds"] for line in lines if line["event"] == "stage"]
    rows = [line for line in lines if line["event"] == "round"]
    seconds = {name: float(sum(part.get(name, 0) for part in parts)) for name in STAGES}
    return _report("plain", wall, seconds, rows)


def run_selfkd(model: Path, rounds: int, scratch: Path) -> Row:
    """Seconds by stage of `selfkd run`, as it recorded them."""
    options = ["--name", "selfkd", "--runs", str(scratch)]
    changes = [f"model={model}", f"rounds={rounds}", "gate.mode=off"]
    config = str(ROOT / "loops" / "rest_em.yaml")
    command = [sys.executable, "-m", "selfkd"]
    wall, _ = _timed([*command, "run", config, *changes, *options])
    _, output = _timed([*command, "curves", str(scratch / "selfkd"), "--json"])
    rows = json.loads(output)["rounds"]
    seconds = {name: float(sum(r["seconds"].get(name) or 0 for r in rows)) for name in STAGES}
    report = _report("selfkd", wall, seconds, rows)
    return report | {"own": own_shares(scratch / "selfkd" / "events.jsonl")}


def own_shares(events: Path) -> list[float]:
    """Share of each round after the first that was spent neither in the sampler's engine, nor in a
    judge, nor in the trainer's steps. What works at the same time counts once."""
    shares = []
    inside: list[tuple[float, float]] = []
    began = None
    for line in events.read_text().splitlines():
        event = json.loads(line)
        ended = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] == "step_finished":
            took = _worked(event)
            inside.append((ended - took, ended))
        if event["event"] == "round_finished":
            if began is not None:
                shares.append(1 - _covered(inside) / (ended - began))
            inside, began = [], ended
    return shares


def _worked(step: Row) -> float:
    """Seconds of a step inside an engine, a judge or optimiser steps."""
    summary = step["summary"]
    match step["verb"]:
        case "generate":
            return summary.get("sampling_seconds") or 0.0
        case "train":
            return summary.get("step_seconds") or 0.0
        case "judge":
            return step["seconds"]
    return 0.0


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _report(name: str, wall: float, seconds: dict[str, float], rows: Sequence[Row]) -> Row:
    seconds["rest"] = wall - sum(seconds.values())
    return {
        "name": name,
        "wall": wall,
        "seconds": seconds,
        "tokens": sum((row["samples"] or 0) * (row["length_mean"] or 0) for row in rows),
        "kept": sum(row["kept"] or 0 for row in rows),
        "reward_mean": [row["reward_mean"] for row in rows],
        "heldout_reward": [row["heldout_reward"] for row in rows],
    }


def _timed(command: Sequence[str]) -> tuple[float, str]:
    """Wall-clock seconds and stdout of a command that must succeed."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.monotonic() - started, done.stdout


def stages(reports: Sequence[Row]) -> str:
    """Medians by stage and their ratios, as text."""
    names = ("plain", "selfkd")
    lines = [f"{'seconds':<10}" + "".join(f"{name:>10}" for name in names) + f"{'ratio':>10}"]
    for stage in ("wall", *STAGES):
        plain, ours = (_median(reports, name, stage) for name in names)
        ratio = f"{ours / plain:10.2f}" if plain >= 0.1 else f"{'-':>10}"
        lines.append(f"{stage:<10}{plain:>10.1f}{ours:>10.1f}{ratio}")
    for report in reports:
        rewards, heldout = (_curve(report[name]) for name in ("reward_mean", "heldout_reward"))
        lines.append(
            f"{report['name']}: {report['wall']:.0f} s, {report['tokens']:.0f} tokens sampled, "
            f"{report['kept']} samples kept; reward {rewards}; held-out {heldout}"
        )
    return "\n".join(lines)


def _curve(values: Sequence[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.2f}" for value in values)


def _median(reports: Sequence[Row], name: str, stage: str) -> float:
    own = [r for r in reports if r["name"] == name]
    return statistics.median(r["wall"] if stage == "wall" else r["seconds"][stage] for r in own)


# -- engines --------------------------------------------------------------------------------------


def sample(kind: str, model: Path, batch: int) -> Row:
    """Tokens a second of one engine on `batch` chat prompts at a time, 64 new tokens each, twice
    over; the second time counts. In this process."""
    from selfkd.chat import load_tokenizer, render
    from selfkd.sampling.actor import EngineOptions, SamplerActor, Shard
    from selfkd.sampling.base import Request, Sampling

    tokenizer = load_tokenizer(model)
    options: dict[str, Any] = {"dtype": compute_dtype("auto"), "max_num_seqs": batch}
    actor = SamplerActor(EngineOptions(kind, options), "base", str(model), 0)
    sampling = Sampling.model_validate({"max_tokens": 64})
    questions = [f"What is {i % 90 + 3} + {i * 7 % 90 + 4}?" for i in range(batch)]
    prompts = [render(tokenizer, [{"role": "user", "content": q}]) for q in questions]
    requests = tuple(Request(str(i), tuple(p)) for i, p in enumerate(prompts))
    rate = 0.0
    for _ in range(2):
        started = time.monotonic()
        items = list(actor.generate("base", [(0, requests)], sampling))
        (shard,) = [item for item in items if isinstance(item, Shard)]
        tokens = sum(len(ids) for ids in shard.completions.column("tokens").to_pylist())
        rate = tokens / (time.monotonic() - started)
    return {"engine": kind, "tokens_per_second": rate}


def sampled(kind: str, model: Path, batch: int) -> float:
    """`sample` in a process of its own."""
    command = [sys.executable, __file__, "--engine", kind, "--batch", str(batch)]
    _, output = _timed([*command, "--model", str(model)])
    return json.loads(output.splitlines()[-1])["tokens_per_second"]


# -- targets --------------------------------------------------------------------------------------


def targets(reports: Sequence[Row], rates: dict[str, float], driver: Sequence[Row]) -> list[Row]:
    """What was measured against what is wanted: name, value, limit, and whether more is better."""
    ratio = _median(reports, "selfkd", "wall") / _median(reports, "plain", "wall")
    own = [share for r in reports for share in r.get("own", ())]
    *sizes, resumed = driver
    largest, smallest = sizes[-1], sizes[0]
    rows = [
        ("wall clock, selfkd / plain", ratio, 0.7, False),
        (
            "own share of a round after the first",
            statistics.median(own) if own else 1.0,
            0.05,
            False,
        ),
        ("sampling, vLLM / transformers", rates["vllm"] / rates["transformers"], 3.0, True),
        (f"driver, samples a second at {largest['samples']:,}", rate(largest), 20_000, True),
        (f"driver, MiB above start at {largest['samples']:,}", largest["memory_mib"], 500, False),
        (
            f"driver, cost a sample at {largest['samples']:,} / at {smallest['samples']:,}",
            rate(smallest) / rate(largest),
            1.25,
            False,
        ),
        ("resume, seconds from Ray's start to new work", resumed["to_first_work"], 5, False),
    ]
    return [dict(zip(("name", "value", "wanted", "more"), row, strict=True)) for row in rows]


def rate(report: Row) -> float:
    """Samples a second of a run of benchmarks/driver.py."""
    return report["samples"] / report["wall"]


def table(rows: Sequence[Row]) -> str:
    """Targets as text."""
    lines = [f"{'target':<58}{'measured':>12}{'wanted':>12}"]
    for row in rows:
        met = row["value"] >= row["wanted"] if row["more"] else row["value"] <= row["wanted"]
        wanted = f"{'>=' if row['more'] else '<='} {row['wanted']:g}"
        said = "pass" if met else "MISS"
        lines.append(f"{row['name']:<58}{row['value']:>12.4g}{wanted:>12}  {said}")
    return "\n".join(lines)


def main() -> None:
    """Run everything and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1, help="of each of the two")
    parser.add_argument("--batch", type=int, default=96, help="prompts sampled at once")
    parser.add_argument("--driver", default="10000,100000,1000000", help="samples of driver runs")
    parser.add_argument("--out", type=Path, help="also write every figure here, as JSON")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(sample(args.engine, args.model, args.batch)))
        return
    model = pull("SmolLM2-135M-Instruct", verify=False)
    dtype = compute_dtype("auto")
    facts = {"cores": cores(), "dtype": dtype, "load": os.getloadavg()[0], "versions": versions()}
    print(f"{facts['cores']} cores, {dtype}, load before the start {facts['load']:.1f};", end=" ")
    print(", ".join(f"{name} {v}" for name, v in facts["versions"].items()), flush=True)
    reports = []
    for _ in range(args.repeats):
        for run in (run_plain, run_selfkd):
            with tempfile.TemporaryDirectory() as scratch:
                reports.append(run(model, args.rounds, Path(scratch)))
    print(stages(reports), flush=True)
    rates = {kind: sampled(kind, model, args.batch) for kind in ("transformers", "vllm")}
    print(", ".join(f"{kind} {r:.0f} tokens/s at batch {args.batch}" for kind, r in rates.items()))
    script = str(ROOT / "benchmarks" / "driver.py")
    _, output = _timed([sys.executable, script, "--samples", args.driver, "--json"])
    driver = [json.loads(line) for line in output.splitlines()]
    for report in driver[:-1]:
        print(f"driver, {report['samples']:>9,} samples: {1e6 / rate(report):.1f} us a sample")
    rows = targets(reports, rates, driver)
    print(table(rows))
    if args.out:
        every = {"reports": reports, "rates": rates, "driver": driver, "targets": rows}
        args.out.write_text(json.dumps({**facts, **every}, indent=1) + "\n")


if __name__ == "__main__":
    main()
