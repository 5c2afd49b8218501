"""A task of a verifiers taskset scores the completion with its own rewards (verifiers 0.4 and on).

For prompts drawn from `verifiers:TASKSET`, whose column `verifiers` holds the taskset and the
task's data. The reward is the sum of the task's rewards by their weights. Rewards that need the box
that a rollout ran in (a `runtime`) cannot be had of a single answer, and are left out.
"""

from typing import Any, Literal

from selfkd import Sample, Verdict, judge
from selfkd.judging import JudgeOptions
from selfkd.prompts.tasksets import Taskset


class VerifiersOptions(JudgeOptions):
    """Options of the judge `verifiers`."""

    gold: bool = True
    """Its rewards say what is right. Say false of a taskset whose rewards are a model's opinion."""
    truncated: Literal["wrong", "read"] = "wrong"
    """A completion cut off at the token limit gets reward 0, or is read like any other."""


@judge("verifiers", gold=lambda options: options.gold)
async def verifiers(sample: Sample, options: VerifiersOptions) -> Verdict:
    """A task of a verifiers taskset scores the completion with its own rewards."""
    row = sample.columns.get("verifiers")
    if row is None:
        raise ValueError("the prompt has no column verifiers; use prompts: verifiers:TASKSET")
    if sample.finish == "length" and options.truncated == "wrong":
        return sample.verdict(0.0, rationale="length")
    task = Taskset.of(row["taskset"], row["options"]).task(row["data"])
    trace = _trace(task, sample)
    await task.score(trace)
    given = {name: reward for name, reward in trace.rewards.items() if reward is not None}
    if not given:
        raise ValueError(
            f"taskset {row['taskset']} gives no reward without the runtime of a rollout"
        )
    said = ", ".join(f"{name} {reward.value:g}" for name, reward in given.items())
    return sample.verdict(sum(r.value for r in given.values()), rationale=said)


def _trace(task: Any, sample: Sample) -> Any:
    """What a rollout would have recorded that ended with the completion."""
    import verifiers.v1 as vf

    kinds = {"system": vf.SystemMessage, "assistant": vf.AssistantMessage}
    messages = [
        kinds.get(m["role"], vf.UserMessage)(content=m["content"]) for m in sample.prompt.messages
    ]
    messages.append(vf.AssistantMessage(content=sample.completion))
    nodes = [
        vf.MessageNode(parent=i - 1 if i else None, message=m, sampled=i == len(messages) - 1)
        for i, m in enumerate(messages)
    ]
    known = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = vf.AgentInfo(config=vf.AgentConfig())
    return vf.Trace(task=known, agent=agent, nodes=nodes, is_completed=True, ok=True)
