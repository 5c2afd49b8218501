"""Run directories made by hand: real shards and manifests, without a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from selfkd.files import make_directory
from selfkd.ledger import Ledger, Step
from selfkd.records import (
    DECISIONS,
    VERDICTS,
    Decision,
    Prompt,
    Sample,
    Verdict,
    prompts_table,
    rows_table,
    samples_table,
)


def new_run(path: Path, **config: Any) -> Ledger:
    """A run directory with nothing but its config."""
    make_directory(path)
    settings = {"loop": "rest_em", "model": "/models/tiny", "judge": "number", "rounds": 4}
    head = {"schema": 1, "created": "2026-01-01T00:00:00.000+00:00"}
    (path / "run.yaml").write_text(yaml.safe_dump({"run": head, **settings, **config}))
    return Ledger(path)


def prompts(count: int) -> list[Prompt]:
    return [Prompt.of(f"{i} + 1 =", str(i + 1)) for i in range(count)]


def make_samples(
    round: int, tokens: Sequence[tuple[Prompt, Sequence[int]]], label: str = "", **fields: Any
) -> list[Sample]:
    """One sample for each (prompt, token ids); a 0 as the last token is the end of sequence."""
    return [
        Sample(
            id=f"{round}-{label}-{i}",
            prompt=prompt,
            index=i,
            completion=fields.get("completion", " ".join(map(str, ids))),
            tokens=tuple(ids),
            finish="stop" if ids and ids[-1] == 0 else "length",
            policy=f"round-{round}" if round else "base",
            round=round,
        )
        for i, (prompt, ids) in enumerate(tokens)
    ]


def generate(
    ledger: Ledger,
    round: int,
    samples: Sequence[Sample],
    label: str = "",
    *,
    shard: int = 4,
    finish: bool = True,
    seconds: float = 2.0,
) -> Step:
    """The steps `prompts` and `generate`, with `shard` samples a shard."""
    asked = list({s.prompt.id: s.prompt for s in samples}.values())
    step = ledger.step(round, "prompts", label, {})
    step.write(0, prompts_table(asked))
    step.finish({"prompts": len(asked), "too_long": 0}, seconds=0.1)
    policy = f"round-{round}" if round else "base"
    step = ledger.step(round, "generate", label, {"policy_name": policy})
    for i in range(0, len(samples), shard):
        step.write(i // shard, samples_table(samples[i : i + shard]))
    if finish:
        step.finish({"samples": len(samples), "policy": policy}, seconds=seconds)
    return step


def judge(
    ledger: Ledger,
    round: int,
    samples: Sequence[Sample],
    rewards: Sequence[float | str | None],
    label: str = "",
    *,
    seconds: float = 1.0,
    **fields: Any,
) -> Step:
    """The step `judge`; a string in `rewards` is the status of a sample without one."""
    verdicts = []
    for sample, reward in zip(samples, rewards, strict=True):
        verdict = sample.verdict(reward if not isinstance(reward, str) else None, **fields)
        if isinstance(reward, str):
            verdict = Verdict(sample.id, sample.prompt.id, "number", None, reward)  # type: ignore[arg-type]
        verdicts.append(verdict)
    step = ledger.step(round, "judge", label, {})
    step.write(0, rows_table(verdicts, VERDICTS))
    step.finish({}, seconds=seconds)
    return step


def keep(
    ledger: Ledger,
    round: int,
    samples: Sequence[Sample],
    reasons: Sequence[str | None],
    label: str = "",
) -> Step:
    """The step `keep`; a reason is why a sample is dropped, None that it is kept."""
    step = ledger.step(round, "keep", label, {})
    decisions = [
        Decision(s.id, s.prompt.id, reason is None, reason or "kept")
        for s, reason in zip(samples, reasons, strict=True)
    ]
    step.write(0, rows_table(decisions, DECISIONS))
    step.finish({}, seconds=0.1)
    return step


def measure(ledger: Ledger, round: int, rewards: Sequence[float | str]) -> None:
    """A held-out evaluation in one round, one answer a prompt."""
    answers = make_samples(round, [(p, [1, 0]) for p in prompts(len(rewards))], "heldout")
    generate(ledger, round, answers, "heldout", seconds=3.0)
    judge(ledger, round, answers, rewards, "heldout", seconds=0.5)


def write_metrics(ledger: Ledger, rows: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (ledger.path / "metrics.jsonl").write_text(lines)
