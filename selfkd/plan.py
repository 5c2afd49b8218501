"""What a run would do, before it does it: prompts, samples, tokens, disk, memory and time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfkd.assembly import check_fit, engine_kind, open_run_prompts
from selfkd.chat import load_tokenizer, render_all
from selfkd.config import Resolved
from selfkd.hardware import compute_dtype, cores, has_gpu
from selfkd.memory import GIB, parameters
from selfkd.models import find_model, require_model
from selfkd.records import Prompt

CHARS_PER_TOKEN = 4
"""English text under a byte-pair vocabulary; only for models that are not here yet."""
RENDERED = 1000
"""Most prompts whose tokens are counted; others are taken to be like them."""
SAMPLED_PER_CORE = {"bfloat16": 200, "float32": 130}
TRAINED_PER_CORE = {"bfloat16": 250, "float32": 130}
"""Tokens a second and core that SmolLM2-135M at least samples with vLLM and trains on cores with
AVX-512 (`make bench`); other models scale with their parameters."""
MEASURED_PARAMETERS = 135e6
BYTES_PER_SAMPLE = 400
"""Parquet bytes of a short sample with its verdict, decision and example."""


def make_plan(resolved: Resolved) -> dict[str, Any]:
    """The plan as plain values; checks prompts, plug-ins, chat template and memory; loads no model
    and writes nothing.

    Sampled tokens are an upper bound: every completion at its full length. Time is a rough estimate
    for CPU, null on GPU and for models that are not on this machine yet.
    """
    config, options = resolved.config, resolved.options
    require_model(config.model)
    source = open_run_prompts(resolved)
    prompts, heldout = source.train(0), source.heldout()
    samples = options.samples(len(prompts))
    longest = config.sampling.max_tokens
    evaluated = len(heldout) * (options.rounds + 1) if resolved.gold_judge else 0
    completion_tokens = (samples * (options.rounds + 1) + evaluated) * longest
    model = find_model(config.model)
    plan: dict[str, Any] = {
        "loop": resolved.loop.name,
        "model": config.model,
        "judge": resolved.judge.name,
        "gold_judge": resolved.gold_judge.name if resolved.gold_judge else None,
        "engine": engine_kind(config.engine.kind)[0],
        "rounds": options.rounds,
        "prompts_per_round": len(prompts),
        "heldout": len(heldout),
        "samples_per_round": samples,
        "prompt_tokens_per_round": _prompt_tokens(model, config.chat_template, prompts),
        "completion_tokens_at_most": completion_tokens,
        "prompt_report": source.report,
    }
    return plan | _costs(resolved, model, samples, completion_tokens)


def _prompt_tokens(model: Path | None, template: str | None, prompts: Sequence[Prompt]) -> int:
    """Of all prompts, as the model's chat template renders them; raises where it cannot."""
    if model is None:
        return sum(len(m["content"]) for p in prompts for m in p.messages) // CHARS_PER_TOKEN
    some = [p.messages for p in prompts[:RENDERED]]
    tokens = sum(map(len, render_all(load_tokenizer(model, template), some)))
    return tokens * len(prompts) // max(1, len(some))


def _costs(
    resolved: Resolved, model: Path | None, samples: int, completion_tokens: int
) -> dict[str, Any]:
    if model is None:
        return {"model_present": False, "parameters": None, "disk_gib": None, "memory_gib": None,
                "residency": None, "minutes": None}  # fmt: skip
    count, rounds = parameters(model), resolved.options.rounds
    size = sum(f.stat().st_size for f in model.glob("*.safetensors")) / GIB
    memory, swap = check_fit(resolved, model)
    scale = cores() * MEASURED_PARAMETERS / max(count, 1)
    config = resolved.config
    trained = samples * rounds * config.train.epochs * config.sampling.max_tokens
    sampling = SAMPLED_PER_CORE[compute_dtype(config.engine.dtype)] * scale
    training = TRAINED_PER_CORE[compute_dtype(config.train.dtype)] * scale
    seconds = completion_tokens / sampling + trained / training
    return {
        "model_present": True,
        "parameters": count,
        "disk_gib": round(rounds * size + samples * (rounds + 1) * BYTES_PER_SAMPLE / GIB, 2),
        "memory_gib": {
            "sampler": round(memory.sampler, 1),
            "trainer": round(memory.trainer, 1),
            "machine": round(memory.total, 1),
        },
        "residency": "swap" if swap else "both",
        "minutes": None if has_gpu() else round(seconds / 60, 1),
    }


def render_plan(plan: dict[str, Any]) -> str:
    """The plan as lines for a person."""
    lines = [
        f"loop       {plan['loop']}, {plan['rounds']} rounds",
        f"model      {plan['model']}"
        + ("" if plan["model_present"] else "  (not here yet: it will be fetched)"),
        f"judge      {plan['judge']}; held-out: "
        + (f"{plan['gold_judge']} on {plan['heldout']} prompts" if plan["gold_judge"] else "none"),
        f"engine     {plan['engine']}"
        + (f", {plan['residency']} resident" if plan["residency"] == "both" else ""),
        f"a round    {plan['prompts_per_round']:,} prompts, {plan['samples_per_round']:,} samples, "
        f"about {plan['prompt_tokens_per_round']:,} prompt tokens",
        f"in all     at most {plan['completion_tokens_at_most']:,} sampled tokens",
    ]
    if plan["model_present"]:
        memory = plan["memory_gib"]
        lines += [
            f"memory     sampler {memory['sampler']} GiB, trainer {memory['trainer']} GiB "
            f"of {memory['machine']}",
            f"disk       {plan['disk_gib']} GiB",
            "time       "
            + (f"at most about {plan['minutes']} minutes" if plan["minutes"] else "not estimated"),
        ]
    lines += [
        f"prompts    {v} {k.replace('_', ' ')}" for k, v in plan["prompt_report"].items() if v
    ]
    return "\n".join([*lines, "nothing was written"])
