"""Turns completions that were given into samples, so that they can be learnt from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from selfkd.ledger import Step
from selfkd.pairs import DEMONSTRATION
from selfkd.records import Prompt, Sample, samples_table
from selfkd.verbs.generate import sample_ids

if TYPE_CHECKING:
    from selfkd.round import Round


def record_demonstrations(
    round: "Round", step: Step, prompts: Sequence[Prompt], texts: Mapping[str, str]
) -> None:
    """One finished sample a prompt: the tokens of its text, end-of-sequence included."""
    tokenizer = round.run.setting.tokenizer
    ids = sample_ids(
        round, step, pa.array([p.id for p in prompts], pa.string()), pa.array([0] * len(prompts))
    ).to_pylist()
    samples = [
        _sample(round, tokenizer, id, prompt, texts[prompt.id])
        for id, prompt in zip(ids, prompts, strict=True)
    ]
    step.write(0, samples_table(samples))
    tokens = sum(len(s.tokens) for s in samples)
    round.finish(
        step, {"prompts": len(prompts), "samples": len(samples), "tokens": tokens, "truncated": 0}
    )


def _sample(round: "Round", tokenizer: Any, id: str, prompt: Prompt, text: str) -> Sample:
    tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return Sample(
        id=id,
        prompt=prompt,
        index=0,
        completion=text,
        tokens=(*tokens, tokenizer.eos_token_id),
        policy=DEMONSTRATION,
        round=round.number,
    )
