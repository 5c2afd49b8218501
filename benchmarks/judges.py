"""How far a small model's judgements of its own answers agree with gold, judge by judge.

    python benchmarks/judges.py

The model answers sums of two numbers, and each judge scores the same answers on the same engine.
`scored` is the share that got a reward; `auc` the chance that a right answer has the higher reward
of a right and a wrong one, over all prompts; `pairs` the share of pairs of one prompt, one right
and one wrong, in which the right one has (ties half). 0.5 is chance.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from selfkd.agreement import auc, pairwise
from selfkd.assembly import engine_kind, gpu_share
from selfkd.batches import Batch
from selfkd.cluster import Cluster, Place
from selfkd.enginecalls import EngineCalls
from selfkd.judgecalls import Call
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec
from selfkd.prompts import PromptOptions, open_prompts
from selfkd.records import Prompt, Sample, Verdict, read_rows
from selfkd.samplers import calls_of_model
from selfkd.sampling.base import Sampling

ROOT = Path(__file__).parents[1]
SHOWN = yaml.safe_load((ROOT / "loops" / "self_rewarding.yaml").read_text())["judge"]
"""Three scored examples in place of the paper's words."""
BARE = "Question: {question}\nAnswer: {response}\n"
PLAIN = {"template": BARE + "Is the answer correct? Yes or No?", "unfenced": True}

JUDGES: dict[str, JudgeSpec] = {
    "random": JudgeSpec("random", {"graded": True}),
    "self_reward": JudgeSpec("self_reward", {"max_tokens": 128, "retries": 0}),
    "self_reward, examples": JudgeSpec(
        "self_reward", {k: v for k, v in SHOWN.items() if k != "use"}
    ),
    "rubric": JudgeSpec("rubric", {"max_tokens": 128, "retries": 0}),
    "expected_score": JudgeSpec("expected_score"),
    "expected_score, examples": JudgeSpec(
        "expected_score", {"template": SHOWN["template"], "opening": "", "unfenced": True}
    ),
    "yes_no": JudgeSpec("expected_score", {"form": "yes_no"}),
    "yes_no, bare": JudgeSpec("expected_score", {"form": "yes_no", **PLAIN}),
    "pairwise, likelihood": JudgeSpec("pairwise", {"by": "likelihood"}),
    "majority": JudgeSpec("majority"),
}


def answered(prompts: Sequence[Prompt], calls: EngineCalls, n: int) -> list[Sample]:
    """`n` answers of the model to each prompt."""
    sampling = Sampling.model_validate({"temperature": 0.7, "top_p": 0.9, "max_tokens": 64})
    asked = [Call(p.id, p.messages, sampling, n) for p in prompts]
    replies: list[Any] = calls.answer(asked, lambda: None)
    return [
        Sample(f"{p.id}-{k}", p, k, text, finish=reply.finishes[k])
        for p, reply in zip(prompts, replies, strict=True)
        for k, text in enumerate(reply.texts)
    ]


def verdicts(
    spec: JudgeSpec, samples: list[Sample], cluster: Cluster, calls: EngineCalls
) -> list[Verdict]:
    """One verdict a sample."""
    pool = JudgePool(spec, cluster, workers=1, timeout=600, check=lambda: None)
    try:
        (table,) = pool.judge_batches(iter([Batch.of(samples)]), calls)
        return read_rows(table, Verdict)
    finally:
        pool.close()


def main() -> None:
    """Print one line a judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    asked = parser.parse_args()
    task = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    options = {"source": "reasoning_gym:chain_sum", "options": task, "per_round": asked.prompts}
    source = open_prompts(PromptOptions.model_validate(options), seed=0, base=ROOT)
    kind, _ = engine_kind("auto")
    with (
        Cluster("local", timeout=120) as cluster,
        calls_of_model(asked.model, cluster, kind, place=Place(gpus=gpu_share(None))) as calls,
    ):
        samples = answered(source.train(0), calls, asked.samples)
        gold = [v.reward for v in verdicts(JudgeSpec("number"), samples, cluster, calls)]
        truth = np.array(gold, dtype=np.float64)
        prompts = np.unique([s.prompt.id for s in samples], return_inverse=True)[1]
        print(f"{len(samples)} answers, {truth.mean():.2f} right")
        print(f"{'judge':28}scored    auc  pairs  seconds")
        for name, spec in JUDGES.items():
            started = time.monotonic()
            found = verdicts(spec, samples, cluster, calls)
            rewards = np.array([v.reward for v in found], dtype=np.float64)
            known = ~np.isnan(rewards)
            area = auc(rewards[known], truth[known] >= 1)
            _, order = pairwise(prompts[known], rewards[known], truth[known])
            figures = "".join(f"{'-' if x is None else f'{x:.2f}':>7}" for x in (area, order))
            seconds = time.monotonic() - started
            print(f"{name:28}{known.mean():6.2f}{figures}  {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
