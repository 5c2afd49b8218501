"""Samples the shards of a `generate` step that are still missing."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from selfkd.ledger import Step
from selfkd.policies import Policy
from selfkd.records import Prompt, Sample, samples_table
from selfkd.sampling.actor import Shard
from selfkd.sampling.base import Completion, Request, Sampling
from selfkd.tables import Batch
from selfkd.views import View

if TYPE_CHECKING:
    from selfkd.round import Round


def sample_shards(
    round: "Round",
    step: Step,
    prompts: Sequence[Prompt],
    n: int,
    sampling: Sampling,
    policy: Policy,
    view: View,
) -> Iterator[Batch]:
    """Yield each missing shard once it is recorded, in the order they get full."""
    step.started = time.monotonic()
    plan = shard_plan(prompts, n)
    missing = [i for i in range(len(plan)) if not step.has(i)]
    render = round.run.render
    requests = [
        (i, tuple(Request(p.id, tuple(render(view(p))), n) for p in plan[i])) for i in missing
    ]
    before = len(prompts) - sum(len(plan[i]) for i in missing)
    stream = round.run.sampler.generate(policy.name, policy.path, policy.canary, requests, sampling)
    for item in stream:
        if isinstance(item, Shard):
            batch = [
                drawn_sample(round, step, prompt, k, completion, policy.name, view=view.name)
                for prompt in plan[item.index]
                for k, completion in enumerate(item.completions[prompt.id])
            ]
            step.write(item.index, samples_table(batch))
            yield item.index, batch
        else:
            done = (before + item.requests) * n
            round.progress(step, done, len(prompts) * n, tokens=item.tokens)
    round.finish(step, samples_summary(step, policy.name, len(prompts)))


def shard_plan(prompts: Sequence[Prompt], n: int) -> list[list[Prompt]]:
    """Prompts by shard: between 64 and 4096 samples each, about 32 shards where that allows it."""
    samples = min(4096, max(64, len(prompts) * n // 32))
    size = max(1, samples // n)
    return [list(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def drawn_sample(
    round: "Round",
    step: Step,
    prompt: Prompt,
    index: int,
    completion: Completion,
    policy: str,
    *,
    view: str = "plain",
    parents: tuple[str, ...] = (),
) -> Sample:
    """What an engine drew, as a sample of `step`."""
    return Sample(
        id=sample_id(round, step, prompt, index),
        prompt=prompt,
        index=index,
        completion=completion.text,
        tokens=completion.tokens,
        finish=completion.finish,
        policy=policy,
        view=view,
        round=round.number,
        parents=parents,
        logprob=completion.logprob,
    )


def sample_id(round: "Round", step: Step, prompt: Prompt, index: int) -> str:
    """The id of a prompt's `index`-th sample in a step; no two samples of a run share one."""
    return f"{round.number}-{step.name}-{prompt.id}-{index}"


def samples_summary(step: Step, policy: str, prompts: int) -> dict[str, Any]:
    """What a step of samples says of them."""
    rows = [r for t in step.tables() for r in t.select(["finish", "tokens"]).to_pylist()]
    return {
        "prompts": prompts,
        "samples": len(rows),
        "tokens": sum(len(r["tokens"]) for r in rows),
        "policy": policy,
        "truncated": sum(r["finish"] == "length" for r in rows),
    }
