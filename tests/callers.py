"""A caller that answers by functions, for tests of what a judge makes of answers."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from selfkd.judgecalls import Call, Choices, Likelihoods, Reply
from selfkd.judging import JudgeSpec
from selfkd.records import Prompt, Sample, Verdict

Writes = Callable[[str, int], str]
"""(the message that asks, index of the draw) -> answer."""


class ScriptedCaller:
    """Keeps what it was asked."""

    name = "scripted"
    structured = False

    def __init__(
        self,
        write: Writes = lambda text, k: "",
        weigh: Callable[[str, Sequence[str]], Sequence[float | None]] = lambda text, choices: (),
        *,
        cost: float = 0.0,
        errors: Sequence[str] = (),
    ) -> None:
        """`errors`: texts whose presence in a message makes the call fail with them."""
        self._write = write
        self._weigh = weigh
        self._cost = cost
        self._errors = errors
        self.calls: list[Call] = []
        self.batches: list[int] = []

    def complete(self, calls: Sequence[Call]) -> list[Reply]:
        self.calls += calls
        self.batches.append(len(calls))
        return [self._reply(call) for call in calls]

    def _reply(self, call: Call) -> Reply:
        text = call.messages[-1]["content"]
        for error in self._errors:
            if error in text:
                return Reply(error=error, cost_usd=self._cost)
        texts = tuple(self._write(text, k) for k in range(call.n))
        return Reply(texts, ("stop",) * call.n, cost_usd=self._cost)

    def weigh(self, choices: Sequence[Choices]) -> list[Likelihoods]:
        self.batches.append(len(choices))
        found = []
        for choice in choices:
            logprobs = tuple(self._weigh(choice.messages[-1]["content"], choice.choices))
            found.append(Likelihoods(logprobs, cost_usd=self._cost))
        return found


def judged(
    use: str, samples: Sequence[Sample], caller: ScriptedCaller | None = None, **options: Any
) -> list[Verdict]:
    """The verdicts of a judge, as its own process would ask for them."""
    from selfkd.nested import Nested

    return Nested(JudgeSpec(use, options), caller).judge(samples)


def answer(text: str, question: str = "What is 2 + 2?", k: int = 0, **fields: Any) -> Sample:
    """A sample; those of one question share their prompt."""
    prompt = Prompt(f"prompt-{question}", ({"role": "user", "content": question},))
    return Sample(f"{question}-{k}-{text}", prompt, k, text, **fields)


def between(text: str) -> str:
    """What stands between the marks of a message."""
    (found,) = re.findall(r"<(data-[0-9a-f]{8})>\n(.*?)\n</\1>", text, re.DOTALL)
    return found[1]
