"""Turns completions that were given into samples, so that they can be learnt from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfkd.chat import tokens_of
from selfkd.ledger import Step
from selfkd.pairs import DEMONSTRATION
from selfkd.records import Prompt, Sample, samples_table
from selfkd.verbs.generate import sample_id

if TYPE_CHECKING:
    from selfkd.round import Round


def record_demonstrations(
    round: "Round", step: Step, prompts: Sequence[Prompt], texts: Mapping[str, str]
) -> None:
    """One finished sample a prompt: the tokens of its text, end-of-sequence included."""
    tokenizer = round.run.setting.tokenizer
    samples = [_sample(round, step, tokenizer, prompt, texts[prompt.id]) for prompt in prompts]
    step.write(0, samples_table(samples))
    tokens = sum(len(s.tokens) for s in samples)
    round.finish(
        step, {"prompts": len(prompts), "samples": len(samples), "tokens": tokens, "truncated": 0}
    )


def _sample(round: "Round", step: Step, tokenizer: Any, prompt: Prompt, text: str) -> Sample:
    ids = tokens_of(tokenizer, text)
    return Sample(
        id=sample_id(round, step, prompt.id, 0),
        prompt=prompt,
        index=0,
        completion=text,
        tokens=(*ids, tokenizer.eos_token_id),
        policy=DEMONSTRATION,
        round=round.number,
    )
