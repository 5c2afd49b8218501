"""Reward-weighted self-distillation: the verdict says how much each sample's divergence counts.

No paper; a crossing of on-policy self-distillation (OPSD, arXiv:2601.18734) with advantage-weighted
regression (Peng et al. 2019, arXiv:1910.00177).

The policy answers each prompt several times and a judge gives each answer a reward. A teacher, by
default the base model shown the answer, says at every token what it would write next, and the
student is drawn towards it on each sample in proportion to a weight: the reward itself, the
exponential of the advantage over the prompt's other samples, or what the reward lacks of the best.
With `shortfall` it is corrected most where it fails most; with `advantage` it learns where it does
well, as ReST does, but from whole distributions and not from the sampled token alone. Any judge
will do, so this is the way to distil under an LLM judge, and with `context: null` any teacher.
"""

from typing import Literal

from pydantic import Field

from selfkd import (
    GKD,
    LoopOptions,
    Run,
    by_advantage,
    by_reward,
    by_shortfall,
    context,
    everything,
    loop,
    plain,
)


class RewardWeightedOptions(LoopOptions):
    """Options of reward-weighted self-distillation."""

    samples_per_prompt: int = Field(4, ge=1)
    """Completions drawn for each prompt."""
    weights: Literal["reward", "advantage", "shortfall"] = "advantage"
    """What a sample's weight is made of."""
    weight_temperature: float = Field(0.5, gt=0)
    """Of advantages: the smaller, the more the best samples count."""
    best: float = 1.0
    """The reward that shortfalls are counted from."""
    teacher: str = "base"
    """Who teaches: base, previous, best, live, ema, or a model directory, known name or hub id."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the moving average, a step."""
    context: str | None = "\n\nThe answer is {answer}."
    """What the teacher sees after the prompt, columns filled in; null: nothing more than we."""
    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"] = "jsd"
    """The divergence."""
    beta: float = Field(0.5, gt=0, lt=1)
    """The teacher's share in the mixture of jsd; how far the skewed kinds are skewed."""
    steps_per_sync: int | None = Field(None, ge=1)
    """Optimiser steps between two samplings, at most; default: the round's."""


@loop("reward_weighted")
def reward_weighted(run: Run, options: RewardWeightedOptions) -> None:
    teacher = run.teacher(options.teacher)
    shown = plain if options.context is None else context(options.context)
    weights = {
        "reward": by_reward(),
        "advantage": by_advantage(options.weight_temperature),
        "shortfall": by_shortfall(options.best),
    }[options.weights]
    divergence = options.model_dump(include={"kind", "beta", "ema_decay"})
    n = options.samples_per_prompt
    for round in run.rounds(options.rounds):
        for part in round.segments(run.prompts, n=n, steps_per_sync=options.steps_per_sync):
            own = round.generate(part.prompts, n=n, policy=part.policy, label=part.label)
            kept = round.keep(round.judge(own, run.judge), everything(), weights=weights)
            round.train(GKD(kept, teacher=teacher, teacher_view=shown, **divergence), segment=part)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=n), run.judge)
