"""A user's folder with everything that a run under fire needs: model, prompts, loop and judge."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.testbed.addition import draw, prompt, scratchpad, write_prompts
from tests.testbed.charmodel import train_base

LOOP = '''\
"""Learns from as many samples every round, whatever the judge and the model say."""

from pydantic import Field

from selfkd import SFT, LoopOptions, Run, at_most, loop


class SteadyOptions(LoopOptions):
    samples_per_prompt: int = Field(8, ge=1)
    kept_per_prompt: int = Field(4, ge=1)


@loop("steady")
def steady(run: Run, options: SteadyOptions) -> None:
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.samples_per_prompt)
        kept = round.keep(round.judge(samples, run.judge), at_most(options.kept_per_prompt))
        round.train(SFT(kept))
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=options.samples_per_prompt), run.judge)
'''

JUDGE = '''\
"""Content with everything, slowly; writes down what it is asked."""

import time
from pathlib import Path

LOG = Path(__file__).with_name("judged.txt")


def content(sample):
    time.sleep(0.002)
    with LOG.open("a") as file:
        file.write(sample.id + "\\n")
    return 1.0
'''

COMMON = """\
loop: steady.py:steady
judge: content.py:content
gold_judge: content.py:content
gate: {mode: off}
"""

TINY = """\
model: model
prompts: {source: train.jsonl, heldout_source: heldout.jsonl, fresh: false}
sampling: {max_tokens: 24}
engine: {kind: transformers, dtype: float32, max_num_seqs: 64, max_model_len: 64}
train: {learning_rate: 1.0e-4, dtype: float32, batch_size: 8}
"""

REAL = """\
prompts:
  source: reasoning_gym:chain_sum
  options: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2}
  per_round: 16
  heldout: 16
sampling: {max_tokens: 48}
engine: {kind: vllm}
train: {learning_rate: 1.0e-5, batch_size: 8}
"""


@dataclass(frozen=True)
class World:
    """The folder, and how much every run in it has to hold."""

    folder: Path
    prompts: int
    heldout: int
    rounds: int = 2
    samples: int = 8
    kept: int = 4
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Optimiser steps of every training."""
        return self.epochs * math.ceil(self.prompts * self.kept / 8)

    @property
    def overrides(self) -> list[str]:
        """What `selfkd run run.yaml` is given besides."""
        return [
            f"rounds={self.rounds}",
            f"samples_per_prompt={self.samples}",
            f"kept_per_prompt={self.kept}",
            f"train.epochs={self.epochs}",
        ]

    def judged(self) -> list[str]:
        """Sample ids that the judge was asked about, in order."""
        log = self.folder / "judged.txt"
        return log.read_text().split() if log.exists() else []


def tiny_world(folder: Path, **sizes: int) -> World:
    """On the character model, by the transformers engine."""
    world = World(folder, **{"prompts": 32, "heldout": 8, **sizes})
    rng = np.random.default_rng(0)
    sums = draw(world.prompts + world.heldout, rng, [1, 2], set())
    write_prompts(folder / "train.jsonl", sums[: world.prompts])
    write_prompts(folder / "heldout.jsonl", sums[world.prompts :])

    def batch() -> list[tuple[str, str]]:
        return [(prompt(*s), scratchpad(*s)) for s in draw(16, rng, [1, 2], set())]

    train_base(folder / "model", batch, steps=10, seed=0)
    return _written(world, TINY)


def real_world(folder: Path, model: str, **sizes: int) -> World:
    """On a pretrained model, by vLLM."""
    world = World(folder, **{"prompts": 16, "heldout": 16, **sizes})
    return _written(world, f"model: {model}\n{REAL}")


def _written(world: World, config: str) -> World:
    (world.folder / "steady.py").write_text(LOOP)
    (world.folder / "content.py").write_text(JUDGE)
    (world.folder / "run.yaml").write_text(COMMON + config)
    return world
