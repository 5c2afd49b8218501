"""How attention is computed: on a CPU, short rows are faster without PyTorch's fused kernel."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from selfkd.hardware import trains_by_onednn
from selfkd.memory import SHORT_ROW
from selfkd.records import Example


@contextmanager
def suited_attention(model: Any, examples: Sequence[Example], dtype: str) -> Iterator[None]:
    """Train with plain products and a softmax where they are faster and their scores are small.

    With oneDNN's products the kernel for CPUs takes 2.5 to 6 times as long on rows of up to
    `SHORT_ROW` tokens, and as long on ones of 300 in bfloat16 (`benchmarks/attention.py`).
    """
    usual = model.config._attn_implementation
    short = _longest(examples) <= SHORT_ROW
    if usual != "sdpa" or not trains_by_onednn(dtype) or not short:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _longest(examples: Sequence[Example]) -> int:
    """Tokens of the longest row that is made of an example."""
    return max(
        max(len(e.prompt_tokens), len(e.teacher_prompt_tokens or ()))
        + max(len(e.completion_tokens), len(e.rejected_tokens or ()))
        for e in examples
    )
