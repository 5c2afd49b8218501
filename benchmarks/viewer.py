"""How long the page takes on large runs: `python -m benchmarks.viewer`.

Makes a run of random samples, serves it, and prints what each request takes (the first time, with
nothing remembered, and again), and, where there is a Chromium, the time to the first figure. Run it
from the root of the repository.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfkd.ledger import Ledger
from selfkd.metrics import round_rows
from selfkd.records import DECISIONS, SAMPLES, VERDICTS, prompts_table
from tests.browser import chromium, find_browser, served
from tests.synthetic import measure, new_run, prompts, write_metrics

EACH = 8
"""Samples a prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--samples", type=int, default=10_000, help="samples a round")
    parser.add_argument("--shard", type=int, default=1000, help="samples a shard")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "large"
        seconds = timed(lambda: make_run(run, args.rounds, args.samples, args.shard))
        total = args.rounds * args.samples
        print(f"{total:,} samples in {args.rounds} rounds, made in {seconds:.0f} s")
        with served(Path(folder)) as address:
            report(address, args.rounds)


def timed(action: Callable[[], Any]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


# -- a large run ----------------------------------------------------------------------------------


def make_run(path: Path, rounds: int, samples: int, shard: int) -> None:
    """A finished run of random tokens and rewards, written as a run writes it."""
    ledger = new_run(path, rounds=rounds)
    rng = np.random.default_rng(0)
    asked = prompts(max(1, samples // EACH))
    for number in range(rounds):
        measure(ledger, number, [float(r) for r in rng.integers(0, 2, 100)])
        step = ledger.step(number, "prompts", "", {})
        step.write(0, prompts_table(asked))
        step.finish({}, seconds=0.1)
        write_steps(ledger, number, [p.id for p in asked], samples, shard, rng)
    write_metrics(ledger, round_rows(path))
    for number in range(rounds):
        ledger.step(number, "round", "", {}).finish({})
    ledger.event("run_finished", seconds=1.0, reason="")


def write_steps(
    ledger: Ledger,
    number: int,
    asked: list[str],
    samples: int,
    shard: int,
    rng: np.random.Generator,
) -> None:
    policy = f"round-{number}" if number else "base"
    verbs = {"generate": {"policy_name": policy}, "judge": {}, "keep": {}}
    steps = {verb: ledger.step(number, verb, "", args) for verb, args in verbs.items()}
    for place, start in enumerate(range(0, samples, shard)):
        size = min(shard, samples - start)
        ids = pa.array([f"{number}-generate-{i}" for i in range(start, start + size)])
        of = pa.array([asked[(start + i) // EACH % len(asked)] for i in range(size)])
        rewards = rng.random(size).round(3)
        steps["generate"].write(place, sample_shard(ids, of, number, policy, rng))
        steps["judge"].write(place, verdict_shard(ids, of, rewards))
        steps["keep"].write(place, decision_shard(ids, of, rewards > 0.7))
    for step in steps.values():
        step.finish({"policy": policy}, seconds=1.0)


def sample_shard(
    ids: pa.Array, of: pa.Array, number: int, policy: str, rng: np.random.Generator
) -> pa.Table:
    size = len(ids)
    lengths = rng.integers(10, 60, size)
    tokens = rng.integers(0, 30_000, int(lengths.sum())).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns = {
        "id": ids,
        "prompt_id": of,
        "index": pa.array(np.arange(size, dtype=np.int32) % EACH),
        "completion": pa.array([f"the answer to {i} is {r}." for i, r in enumerate(lengths)]),
        "tokens": pa.ListArray.from_arrays(pa.array(ends), pa.array(tokens)),
        "finish": pa.array(["stop"] * size),
        "policy": pa.array([policy] * size),
        "view": pa.array(["plain"] * size),
        "round": pa.array(np.full(size, number, np.int32)),
        "parents": pa.array([[]] * size, pa.list_(pa.string())),
        "logprob": pa.nulls(size, pa.float64()),
    }
    return pa.table(columns).cast(SAMPLES)


def verdict_shard(ids: pa.Array, of: pa.Array, rewards: np.ndarray) -> pa.Table:
    size = len(ids)
    columns = {
        "sample_id": ids,
        "prompt_id": of,
        "judge": pa.array(["number"] * size),
        "reward": pa.array(rewards),
        "status": pa.array(["ok"] * size),
        "answer": pa.nulls(size, pa.string()),
        "rationale": pa.array(["because"] * size),
        "cost_usd": pa.array(np.zeros(size)),
    }
    return pa.table(columns).cast(VERDICTS)


def decision_shard(ids: pa.Array, of: pa.Array, kept: np.ndarray) -> pa.Table:
    columns = {
        "sample_id": ids,
        "prompt_id": of,
        "kept": pa.array(kept),
        "reason": pa.array(np.where(kept, "kept", "below 0.7").tolist()),
        "weight": pa.array(np.ones(len(ids))),
    }
    return pa.table(columns).cast(DECISIONS)


# -- measuring ------------------------------------------------------------------------------------


def report(address: str, rounds: int) -> None:
    """Print the first time and the median of three more, in milliseconds."""
    middle = rounds // 2
    samples = f"runs/large/samples?round={rounds - 1}"
    paths = {
        "list of runs": "runs",
        "run: figures by round": "runs/large",
        "run: spread, length, training": "runs/large/shapes",
        "samples: one page": samples,
        "samples: later page, by reward": f"{samples}&order=reward_high&offset=500",
        "samples: text": f"{samples}&text=is+42",
        "samples: longest": f"runs/large/samples?round={middle}&order=longest",
        "one prompt, all rounds": f"runs/large/prompts/{prompts(3)[2].id}",
    }
    paint(address)
    print(f"{'request':34} {'first':>8} {'again':>8}   ms")
    for name, path in paths.items():
        first, *more = (1000 * timed(lambda p=path: fetch(f"{address}/api/{p}")) for _ in range(4))
        print(f"{name:34} {first:8.0f} {statistics.median(more):8.0f}")


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.loads(answer.read())


def paint(address: str) -> None:
    """Print the time from asking for the page of a run to its first figure and its last.

    Nothing of the run has been read before.
    """
    path = find_browser()
    if not path:
        print("no Chromium here: the time to the first figure is not measured")
        return
    with chromium(path) as new_page:
        page = new_page()
        page.resize(1280, 900)
        drawn = "document.querySelector('figure svg')"
        first = timed(lambda: page.open(f"{address}/runs/large", drawn))
        last = first + timed(
            lambda: page.wait("document.querySelector('#figure-length-reward svg')", seconds=300)
        )
        print(f"page of the run: first figure after {first:.2f} s, all after {last:.2f} s")


if __name__ == "__main__":
    main()
