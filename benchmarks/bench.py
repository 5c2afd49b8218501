"""Wall-clock of selfkd against the plain script, on the same settings: `make bench`.

Both run loops/rest_em.yaml's job from the command line, alternately, and nothing else should run
meanwhile. Prints the ratio selfkd/plain, in all and by stage. Sampled lengths differ from run to
run, so tokens are printed too: compare stages by tokens a second.
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
from pathlib import Path
from typing import Any

from selfkd.hardware import cores
from selfkd.models import pull
from selfkd.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("evaluate", "generate", "judge", "train", "rest")

Row = dict[str, Any]


def run_plain(model: Path, rounds: int, scratch: Path) -> Row:
    """Seconds by stage of the plain script; `rest` is starting, importing, loading and saving."""
    script = str(ROOT / "benchmarks" / "plain_rest_em.py")
    command = [sys.executable, script, "--model", str(model), "--rounds", str(rounds)]
    wall, output = _timed([*command, "--out", str(scratch / "plain")])
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
    return _report("selfkd", wall, seconds, rows)


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


def table(reports: Sequence[Row]) -> str:
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


def main() -> None:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1, help="of each of the two")
    parser.add_argument("--out", type=Path, help="also write every figure here, as JSON")
    args = parser.parse_args()
    model = pull("SmolLM2-135M-Instruct", verify=False)
    facts = {"cores": cores(), "load": os.getloadavg()[0], "versions": versions()}
    print(f"{facts['cores']} cores, load before the start {facts['load']:.1f};", end=" ")
    print(", ".join(f"{name} {v}" for name, v in facts["versions"].items()), flush=True)
    reports = []
    for _ in range(args.repeats):
        for run in (run_plain, run_selfkd):
            with tempfile.TemporaryDirectory() as scratch:
                reports.append(run(model, args.rounds, Path(scratch)))
    print(table(reports))
    if args.out:
        args.out.write_text(json.dumps({**facts, "reports": reports}, indent=1) + "\n")


if __name__ == "__main__":
    main()
