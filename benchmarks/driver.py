"""What the driver costs per sample: one round through every verb, with stand-ins for the models.

    python benchmarks/driver.py --samples 10000,100000,1000000

Sampler and trainer are real actors on Ray whose engine gives back completions it was born with and
whose training writes a file; the judge `number`, the rules, the records and Ray are what a run
uses. Each size is a run in a process of its own. Then the largest run is resumed for one round
more, and timed until that round's first sample is asked for.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selfkd import SFT, LoopOptions, Run, at_most, correct, finished, loop, unique
from selfkd.hardware import resident_gib
from selfkd.sampling.base import Answer, Completion, Work
from selfkd.training.base import TrainJob, TrainReport

HERE = Path(__file__).resolve()
PER_PROMPT = 32
"""As ReST-EM draws (arXiv:2312.06585)."""
KEPT = 10
POOL = 8192
"""Different completions of the stand-in engine."""


class PassOptions(LoopOptions):
    """Options of the loop below."""


@loop("one_pass")
def one_pass(run: Run, options: PassOptions) -> None:
    """Every verb once a round."""
    rule = finished() | correct() | unique() | at_most(KEPT)
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=PER_PROMPT)
        kept = round.keep(round.judge(samples, run.judge), rule)
        round.train(SFT(kept))
        round.evaluate(run.heldout, run.gold_judge)


# -- stand-ins ----------------------------------------------------------------------------------


class StandInEngine:
    """An engine that answers at once, from a pool of completions of 8 to 32 tokens."""

    def __init__(self, policy: str, path: str, *, seed: int, dtype: str) -> None:
        import numpy as np

        self.policy = policy
        self.context = 1024
        self.structured = False
        self._left: deque[Any] = deque()
        self._draw = np.random.default_rng(seed)
        lengths = self._draw.integers(8, 33, POOL)
        # Token frequencies of text are about Zipf's; 49152 tokens as SmolLM2 has.
        self._pool = [self._completion(np.minimum(self._draw.zipf(1.3, n), 49151)) for n in lengths]

    def _completion(self, tokens: Any) -> Completion:
        words = " ".join(f"w{token % 997}" for token in tokens[:-4])
        text = f"{words} so the answer is {self._draw.integers(4)}"
        return Completion(text, tuple(tokens.tolist()), "stop")

    @property
    def busy(self) -> bool:
        """Whether a request is left."""
        return bool(self._left)

    def add(self, work: Work) -> None:
        """Line the requests up."""
        self._left += work.requests

    def step(self) -> list[tuple[str, Answer]]:
        """Answer some requests, in order."""
        found: list[tuple[str, Answer]] = []
        while self._left and len(found) < 32:
            request = self._left.popleft()
            drawn = self._draw.integers(POOL, size=request.n).tolist()
            found.append((request.id, [self._pool[i] for i in drawn]))
        return found

    def drop(self, ids: Iterable[str]) -> None:
        """Nobody gives up here."""

    def load(self, policy: str, path: str) -> None:
        """Be another policy."""
        self.policy = policy

    def sleep(self) -> bool:
        """It has no memory to give."""
        return False

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Nothing is likely or unlikely here."""
        return [[0.0] * len(sequence) for sequence in sequences]

    def last_logprobs(self, sequence: Sequence[int], count: int) -> list[float]:
        """As `logprobs`."""
        return [0.0] * count


class StandInTrainer:
    """A trainer that reads its examples and writes a model of nothing."""

    def train(self, job: TrainJob) -> TrainReport:
        """Count the examples."""
        import pyarrow.parquet as pq

        rows = sum(pq.read_metadata(file).num_rows for file in job.example_files)
        (Path(job.out_dir) / "model.safetensors").write_bytes(b"weights")
        shutil.copy(Path(job.start_path) / "config.json", job.out_dir)
        Path(job.log_file).write_text("")
        return TrainReport(1, rows, rows, 1.0, 0.5, 0.0)


def stand_in_run(folder: Path, samples: int, rounds: int) -> Any:
    """The parts of a run in `folder`, assembled as a run's are, but for the stand-ins."""
    from selfkd.chat import load_tokenizer
    from selfkd.cluster import ANYWHERE, Cluster
    from selfkd.config import resolve
    from selfkd.launch import new_run, resume_run
    from selfkd.ledger import Ledger
    from selfkd.models import pull
    from selfkd.prompts import open_prompts
    from selfkd.sampling.actor import EngineOptions
    from selfkd.sampling.pool import SamplerPool
    from selfkd.sampling.sync import Reload
    from selfkd.setting import Setting
    from selfkd.trainers import Trainers

    class StandInRun(Run):
        def _make_sampler(self) -> SamplerPool:
            return SamplerPool(
                self._cluster,
                EngineOptions("driver:StandInEngine", {"dtype": "float32"}),
                seed=0,
                place=ANYWHERE,
                sync=Reload(),
                max_restarts=0,
                start_timeout=60,
                silence_timeout=60,
                check=lambda: None,
            )

        def _make_trainers(self) -> Trainers:
            return Trainers(
                self._cluster, ANYWHERE, workers=1, check=lambda: None, actor=StandInTrainer
            )

        def start_trainers(self) -> None:
            self._trainers.start()

    model = pull("SmolLM2-135M-Instruct", verify=False)
    path = folder / "runs" / "driver"
    if path.exists():
        resolved = resume_run(path, [f"rounds={rounds}"])
    else:
        write_prompts(folder / "prompts.jsonl", samples // PER_PROMPT)
        config = {
            "loop": f"{HERE}:one_pass",
            "model": str(model),
            "prompts": {"source": str(folder / "prompts.jsonl"), "heldout": 100},
            "judge": "number",
            "gate": {"mode": "off"},
            "rounds": rounds,
        }
        resolved = resolve(config)
        path = new_run(resolved, folder / "runs", "driver")
    source = open_prompts(resolved.config.prompts, seed=0, base=folder)
    setting = Setting(model, load_tokenizer(model), "transformers", False, 1024, ANYWHERE, ANYWHERE)
    cluster = Cluster("local", timeout=60)
    return (
        cluster,
        resolved,
        lambda reporter: StandInRun(
            resolved, Ledger(path), cluster, setting, source, reporter, lambda: None
        ),
    )


def write_prompts(path: Path, count: int) -> None:
    """So many questions, and the held-out ones."""
    rows = (
        json.dumps({"prompt": f"What is {i} + {i + 1}, modulo 4?", "answer": str((2 * i + 1) % 4)})
        for i in range(count + 100)
    )
    path.write_text("\n".join(rows) + "\n")


# -- measuring ----------------------------------------------------------------------------------


class Clock:
    """A reporter that notes when steps begin and end."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self.began = self.ended = self.first = 0.0
        self.watching = -1

    def event(self, name: str, /, **fields: Any) -> None:
        """Note the time."""
        if name == "step_finished":
            key = f"{fields['verb']}-{fields['label']}".rstrip("-")
            self.steps[key] = fields["seconds"]
        if name == "step_started" and not fields["label"]:
            self.began = self.began or time.monotonic()
            if fields["round"] == self.watching:
                self.first = self.first or time.monotonic()
        if name == "round_finished":
            self.ended = self.ended or time.monotonic()


class Memory(threading.Thread):
    """Peak resident memory of this process from its start on, MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_mib = self.peak = resident_gib() * 1024
        self.start()

    def run(self) -> None:
        """Look twenty times a second."""
        while True:
            self.peak = max(self.peak, resident_gib() * 1024)
            time.sleep(0.05)


def one(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Run (or resume) and measure, in this process."""
    began = time.monotonic()
    cluster, resolved, build = stand_in_run(folder, samples, rounds)
    prepared = time.monotonic()
    clock = Clock()
    clock.watching = rounds - 1
    with cluster:
        started = time.monotonic()
        run = build(clock)
        run.start_trainers()
        memory = Memory()
        cpu = time.process_time()
        resolved.loop.fn(run, resolved.options)
        run.finish()
        used = time.process_time() - cpu
        run.close()
    return {
        "samples": samples,
        "wall": clock.ended - clock.began,
        "driver_cpu": used,
        "memory_mib": memory.peak - memory.start_mib,
        "prepare": prepared - began,
        "ray": started - prepared,
        "to_first_work": clock.first - started,
        "steps": clock.steps,
    }


def in_process(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    """`one` in a process of its own."""
    command = [sys.executable, str(HERE), "--one", str(folder), "--samples", str(samples)]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--rounds", str(rounds)], stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return result | {"process": time.monotonic() - started}


def line(report: dict[str, Any]) -> str:
    """One run as a row of the curve."""
    samples, steps = report["samples"], report["steps"]
    verbs = " ".join(f"{1e6 * steps.get(v, 0) / samples:>8.1f}" for v in VERBS)
    return (
        f"{samples:>9,} {report['wall']:>8.1f} {samples / report['wall']:>10,.0f} "
        f"{1e6 * report['driver_cpu'] / samples:>8.1f} {report['memory_mib']:>7.0f}  {verbs}"
    )


VERBS = ("prompts", "generate", "judge", "keep", "train")
HEAD = (
    f"{'samples':>9} {'seconds':>8} {'samples/s':>10} {'CPU us':>8} {'MiB':>7}  "
    + " ".join(f"{verb:>8}" for verb in VERBS)
    + """
CPU: of the driver, a sample; MiB: peak above the start; verbs: wall clock, us a sample, generate
and judge at the same time"""
)


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", default="10000,100000,1000000")
    parser.add_argument("--json", action="store_true", help="one JSON object a run, no table")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [int(size) for size in args.samples.split(",")]
    if args.one:
        print(json.dumps(one(args.one, sizes[0], args.rounds)))
        return
    if not args.json:
        print(f"load before the start {os.getloadavg()[0]:.1f}, {PER_PROMPT} samples a prompt")
        print(HEAD, flush=True)
    for samples in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            report = in_process(Path(scratch), samples, 1)
            print(json.dumps(report) if args.json else line(report), flush=True)
            if samples == sizes[-1]:
                resumed = in_process(Path(scratch), samples, 2)
                print(json.dumps(resumed) if args.json else said(resumed), flush=True)


def said(resumed: dict[str, Any]) -> str:
    """What resuming took."""
    return (
        f"resumed: first new work {resumed['to_first_work']:.1f} s after Ray was up (Ray itself "
        f"{resumed['ray']:.1f} s, imports and prompts {resumed['prepare']:.1f} s)"
    )


if __name__ == "__main__":
    main()
