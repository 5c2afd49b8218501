"""A scorer of inspect_ai: its own, or one of any package that has one.

The scorer sees a conversation that ended with the completion, and the reference answer as target.
C and I, the usual grades, become 1 and 0, P becomes one half; numbers stay as they are.
"""

import importlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.errors import UsageError
from selfkd.judging import JudgeOptions


class InspectAiOptions(JudgeOptions):
    """Options of the judge `inspect_ai`."""

    scorer: str
    """A scorer of inspect_ai, such as includes, match or f1; or module:name."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """What the scorer is made with, such as {ignore_case: false}."""
    gold: bool = True
    """It compares with the reference answer. Say false of one that asks a model without one."""


@judge(
    "inspect_ai",
    gold=lambda options: options.gold,
    needs_answer=lambda options: options.gold,
    ready=lambda options: _scorer(options),
)
async def inspect_ai(sample: Sample, options: InspectAiOptions) -> Verdict:
    """A scorer of inspect_ai, its own or one of any package that has one."""
    from inspect_ai.scorer import NOANSWER, Target, value_to_float

    score = await _scorer(options)(_state(sample), Target(sample.answer or ""))
    if score is None:
        return sample.verdict(None)
    said = {"answer": score.answer, "rationale": score.explanation or ""}
    if score.value == NOANSWER:
        return sample.verdict(0.0, **{**said, "rationale": "no_answer"})
    if isinstance(score.value, list | dict):
        raise ValueError(f"the scorer gives several values, {score.value!r}, not one reward")
    return sample.verdict(value_to_float()(score.value), **said)


def _state(sample: Sample) -> Any:
    """What a task would have come to that ended with the completion."""
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ModelName,
        ModelOutput,
    )
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    kinds = {"system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    asked = [
        kinds.get(m["role"], ChatMessageUser)(content=m["content"]) for m in sample.prompt.messages
    ]
    stop = "max_tokens" if sample.finish == "length" else "stop"
    output = ModelOutput.from_content("selfkd/policy", sample.completion, stop_reason=stop)
    return TaskState(
        model=ModelName("selfkd/policy"),
        sample_id=sample.id,
        epoch=1,
        input=sample.prompt.text,
        messages=[*asked, output.message],
        target=Target(sample.answer or ""),
        output=output,
        completed=True,
        metadata=dict(sample.columns),
    )


def _maker(name: str) -> Callable[..., Any]:
    """What makes the scorer; UsageError where there is none."""
    module, _, attribute = name.rpartition(":")
    remedy = "pip install inspect-ai, or give module:name of a scorer"
    try:
        found = getattr(importlib.import_module(module or "inspect_ai.scorer"), attribute, None)
    except ImportError as error:
        raise UsageError(f"no scorer {name!r}: {error}", where="scorer", remedy=remedy) from error
    if not callable(found):
        raise UsageError(f"there is no scorer {name!r}", where="scorer", remedy=remedy)
    return found


_made: dict[str, Callable[..., Awaitable[Any]]] = {}


def _scorer(options: InspectAiOptions) -> Callable[..., Awaitable[Any]]:
    """The scorer of these options, made once."""
    key = options.model_dump_json()
    if key not in _made:
        _made[key] = _maker(options.scorer)(**options.arguments)
    return _made[key]
