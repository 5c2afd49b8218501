"""Samples the shards of a `generate` step that are still missing."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from selfkd.ledger import Step
from selfkd.policies import Policy
from selfkd.records import SAMPLES, Prompt, Sample
from selfkd.rundir import counts, token_counts
from selfkd.sampling.actor import Shard
from selfkd.sampling.base import Completion, Request, Sampling
from selfkd.tables import Samples, Scored, samples_of
from selfkd.views import View

if TYPE_CHECKING:
    from selfkd.round import Round


def sample_shards(
    round: "Round",
    step: Step,
    prompts: Sequence[Prompt],
    tokens: pa.ChunkedArray,
    n: int,
    sampling: Sampling,
    policy: Policy,
    view: View,
    parents: Scored | Samples | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """Yield each missing shard once it is recorded, in the order they get full.

    `tokens` are those of the prompts under the view. A sample's parents are those of `parents` that
    answer the same prompt.
    """
    step.started = time.monotonic()
    plan = shard_plan(len(prompts), n)
    missing = [i for i in range(len(plan)) if not step.has(i)]
    requests = [(i, _requests(prompts, tokens, plan[i], n)) for i in missing]
    before = len(prompts) - sum(len(plan[i]) for i in missing)
    assert policy.path  # raises where the weights were let go
    tries = _by_prompt(parents) if parents else {}
    sampling_seconds = 0.0
    stream = round.run.sampler.generate(policy.name, policy.path, policy.canary, requests, sampling)
    for item in stream:
        if isinstance(item, Shard):
            table = _samples(round, step, item.completions, policy.name, view.name, tries)
            step.write(item.index, table)
            yield item.index, table
        else:
            sampling_seconds = item.seconds
            done = (before + item.requests) * n
            round.progress(step, done, len(prompts) * n, tokens=item.tokens)
    summary = samples_summary(step, policy.name, len(prompts))
    # Without what it took to have the engine hold the policy; of the last start of a resumed step.
    round.finish(step, summary | {"sampling_seconds": sampling_seconds})


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
        id=sample_id(round, step, prompt.id, index),
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


def shard_plan(prompts: int, n: int) -> list[range]:
    """Prompts by shard: between 64 and 4096 samples each, about 32 shards where that allows it."""
    samples = min(4096, max(64, prompts * n // 32))
    size = max(1, samples // n)
    return [range(i, min(i + size, prompts)) for i in range(0, prompts, size)]


def _requests(
    prompts: Sequence[Prompt], tokens: pa.ChunkedArray, part: range, n: int
) -> tuple[Request, ...]:
    own = tokens.slice(part.start, len(part)).to_pylist()
    return tuple(Request(prompts[i].id, tuple(ids), n) for i, ids in zip(part, own, strict=True))


def _by_prompt(part: Scored | Samples) -> dict[str, list[str]]:
    """Prompt id -> ids of its samples; waits for all of them."""
    part.wait()
    step = samples_of(part).step
    found: dict[str, list[str]] = {}
    for table in (step.read(index, ["id", "prompt_id"]) for index in step.shards()):
        columns = (table.column(name).to_pylist() for name in ("id", "prompt_id"))
        for id, prompt in zip(*columns, strict=True):
            found.setdefault(prompt, []).append(id)
    return found


def _samples(
    round: "Round",
    step: Step,
    completions: pa.Table,
    policy: str,
    view: str,
    parents: Mapping[str, Sequence[str]],
) -> pa.Table:
    """Completions as rows of `SAMPLES`; `parents` of each are found by its prompt."""
    prompts, index = completions.column("request"), completions.column("index")
    count = completions.num_rows
    asked = prompts.to_pylist()
    pairs = zip(asked, index.to_pylist(), strict=True)
    ids = [sample_id(round, step, prompt, k) for prompt, k in pairs]
    columns = {
        "id": pa.array(ids, type=pa.string()),
        "prompt_id": prompts,
        "policy": pa.repeat(policy, count),
        "view": pa.repeat(view, count),
        "round": pa.repeat(pa.scalar(round.number, pa.int32()), count),
        "parents": pa.array([parents.get(p, ()) for p in asked], type=pa.list_(pa.string())),
    }
    names = [f.name for f in SAMPLES]
    found = [columns[n] if n in columns else completions.column(n) for n in names]
    return pa.Table.from_arrays(found, schema=SAMPLES)


def sample_id(round: "Round", step: Step, prompt_id: str, index: int) -> str:
    """The id of a prompt's `index`-th sample in a step; no two samples of a run share one."""
    return f"{round.number}-{step.name}-{prompt_id}-{index}"


def samples_summary(step: Step, policy: str, prompts: int) -> dict[str, Any]:
    """What a step of samples says of them."""
    samples = tokens = truncated = 0
    for index in step.shards():
        table = step.read(index, ["finish", "tokens"])
        samples += table.num_rows
        tokens += int(token_counts(table).sum())
        truncated += counts(table.column("finish")).get("length", 0)
    return {
        "prompts": prompts,
        "samples": samples,
        "tokens": tokens,
        "policy": policy,
        "truncated": truncated,
    }
