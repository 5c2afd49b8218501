"""ReST-EM in plain vLLM and TRL, without selfkd: what `make bench` measures selfkd against.

Same settings as loops/rest_em.yaml. Every stage is a process of its own, as one would write it by
hand: one that loads vLLM, answers the held-out prompts and samples, and one that trains. Prints
JSON lines: seconds per stage, and a row of figures per round.

    python benchmarks/plain_rest_em.py --rounds 4 --out /tmp/plain
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPTS_PER_ROUND = 64
HELDOUT = 100
SAMPLES_PER_PROMPT = 8
MAX_KEPT_PER_PROMPT = 8
LEARNING_RATE, DECAY = 4.5e-5, 0.7
MAX_NEW_TOKENS = 64
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Row = dict[str, Any]


# -- tasks and rewards --------------------------------------------------------------------------


def tasks(seed: int, size: int) -> Iterator[tuple[str, str]]:
    """`(question, answer)` pairs: sums of two numbers of one or two digits."""
    import reasoning_gym

    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    data = reasoning_gym.create_dataset("chain_sum", seed=seed, size=size, **options)
    return ((row["question"], row["answer"]) for row in data)


def fresh_tasks(round: int, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Held-out tasks, the same in every round, and this round's training tasks, apart from them."""
    heldout = list(dict(tasks(seed, 4 * HELDOUT)).items())[:HELDOUT]
    known = dict(heldout)
    drawn = dict(tasks(seed + 1000 * (round + 1), 4 * PROMPTS_PER_ROUND))
    train = [(q, a) for q, a in drawn.items() if q not in known]
    return heldout, train[:PROMPTS_PER_ROUND]


def reward(completion: str, answer: str) -> float:
    """1 if the last number of the completion is the answer, else 0."""
    numbers = NUMBER.findall(completion.replace(",", ""))
    return float(bool(numbers) and float(numbers[-1]) == float(answer))


def keep(samples: list[Row], seed: int) -> list[Row]:
    """Finished, correct samples, a random few of each prompt."""
    chosen = random.Random(seed)
    kept = []
    for question in dict.fromkeys(s["question"] for s in samples):
        right = [s for s in samples if s["question"] == question and s["reward"] == 1]
        right = [s for s in right if s["finished"]]
        kept += chosen.sample(right, min(MAX_KEPT_PER_PROMPT, len(right)))
    return kept


# -- stages, each in its own process ------------------------------------------------------------


def sample(model: str, round: int, seed: int, dtype: str, out: Path) -> Row:
    """Held-out accuracy of a model, and its samples for the next training."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    os.environ |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    started = time.monotonic()
    from vllm import LLM, SamplingParams

    settings: Any = {"dtype": dtype, "enforce_eager": True, "max_model_len": 1024}
    llm = LLM(model, seed=seed + round, **settings)
    heldout, train = fresh_tasks(round, seed)
    loaded = time.monotonic()

    def complete(pairs: list[tuple[str, str]], n: int, temperature: float) -> list[Row]:
        params = SamplingParams(n=n, temperature=temperature, max_tokens=MAX_NEW_TOKENS)
        chats: Any = [[{"role": "user", "content": question}] for question, _ in pairs]
        return [
            {
                "question": question,
                "completion": completion.text,
                "finished": completion.finish_reason == "stop",
                "tokens": len(completion.token_ids),
                "reward": reward(completion.text, answer),
            }
            for (question, answer), output in zip(
                pairs, llm.chat(chats, params, use_tqdm=False), strict=True
            )
            for completion in output.outputs
        ]

    greedy = complete(heldout, 1, 0.0)
    evaluated = time.monotonic()
    samples = complete(train, SAMPLES_PER_PROMPT, 1.0)
    sampled = time.monotonic()
    kept = keep(samples, seed + round)
    write_lines(out / "samples.jsonl", samples)
    write_lines(out / "kept.jsonl", kept)
    return {
        "heldout_reward": mean(greedy, "reward"),
        "reward_mean": mean(samples, "reward"),
        "samples": len(samples),
        "kept": len(kept),
        "length_mean": mean(samples, "tokens"),
        "seconds": {
            "load": loaded - started,
            "evaluate": evaluated - loaded,
            "generate": sampled - evaluated,
        },
    }


def train(model: str, round: int, seed: int, dtype: str, out: Path) -> Row:
    """Fine-tune a model on the kept samples of a round."""
    started = time.monotonic()
    import torch
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["completion"].strip()}],
        }
        for row in read_lines(out / "kept.jsonl")
    ]
    settings = SFTConfig(
        output_dir=str(out / "trainer"),
        learning_rate=LEARNING_RATE * DECAY**round,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        lr_scheduler_type="linear",
        warmup_steps=0,
        bf16=dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,  # the model is small: recomputing would only cost time
        train_sampling_strategy="group_by_length",
        model_init_kwargs={"dtype": "float32"},
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=seed + round,
    )
    trainer = SFTTrainer(model=model, args=settings, train_dataset=Dataset.from_list(rows))
    loaded = time.monotonic()
    trainer.train()
    trained = time.monotonic()
    policy: Any = trainer.model
    for weight in policy.parameters():
        weight.data = round_to_bfloat16(weight.data)
    trainer.save_model(str(out / "model"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "examples": len(rows),
        "steps": trainer.state.global_step,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "seconds": {
            "load": loaded - started,
            "train": trained - loaded,
            "save": time.monotonic() - trained,
        },
    }


def round_to_bfloat16(weights: Any) -> Any:
    """bfloat16 weights, each rounded up or down at random so that its expectation is exact.

    A round moves weights by less than half a bfloat16 step; rounding to nearest, here or when vLLM
    loads float32 weights, would undo most of the training.
    """
    import torch

    bits = weights.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


# -- the loop -----------------------------------------------------------------------------------


def run_stage(stage: str, model: str, round: int, seed: int, dtype: str, out: Path) -> Row:
    """Run a stage in a new process; `process` seconds are its start, imports and end."""
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    command = [sys.executable, __file__, "--stage", stage, "--model", model]
    command += ["--round", str(round), "--seed", str(seed), "--dtype", dtype, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((out / f"{stage}.json").read_text())
    wall = time.monotonic() - started
    report["seconds"]["process"] = wall - sum(report["seconds"].values())
    emit(event="stage", round=round, stage=stage, wall=wall, **report)
    return report


def rest_em(model: str, rounds: int, start: str, seed: int, dtype: str, out: Path) -> None:
    """Sample and train `rounds` times, then sample and measure the last model too."""
    started = time.monotonic()
    policy = model
    for round in range(rounds + 1):
        here = out / f"round-{round}"
        report = run_stage("sample", policy, round, seed, dtype, here)
        names = ("samples", "kept", "reward_mean", "heldout_reward", "length_mean")
        emit(event="round", round=round, **{name: report[name] for name in names})
        if round == rounds:
            break
        run_stage("train", model if start == "base" else policy, round, seed, dtype, here)
        policy = str(here / "model")
    emit(event="finished", wall=time.monotonic() - started)


def emit(**row: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(row), flush=True)


def mean(rows: list[Row], column: str) -> float:
    """Mean of a column."""
    return sum(row[column] for row in rows) / len(rows)


def write_lines(path: Path, rows: list[Row]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[Row]:
    """The inverse of `write_lines`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Parse the command line and run the loop, or one stage of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="model directory; default: the demo's model")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--start", choices=("previous", "base"), default="previous")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="folder to keep samples and models in")
    parser.add_argument("--stage", choices=("sample", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        stage = {"sample": sample, "train": train}[args.stage]
        report = stage(args.model, args.round, args.seed, args.dtype, args.out)
        (args.out / f"{args.stage}.json").write_text(json.dumps(report))
        return
    if args.model is None:
        from selfkd.models import pull  # only to find the same model

        args.model = str(pull("SmolLM2-135M-Instruct", verify=False))
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        rest_em(args.model, args.rounds, args.start, args.seed, args.dtype, out)


if __name__ == "__main__":
    main()
