"""SDFT: learn from demonstrations by way of what the policy itself makes of them.

Shenfeld et al. 2026, "Self-Distillation Enables Continual Learning", arXiv:2601.19897.

The policy answers a prompt on its own. Then the same policy, a moving average of it, is shown an
example of a good response with the prompt, and says at every token of that answer what it would
write next. The student is drawn towards that. So it learns from demonstrations without ever being
trained on text that is not its own, which is what makes fine-tuning on them forget other skills.

Departures: sources disagree on the direction of the divergence (reverse KL in the paper as far as
we know, forward KL and JSD in reference code), so `kind` is an option. The moving average begins
anew with each round: let a round be long, and cut it with `steps_per_sync`. The paper samples anew
in every step (`steps_per_sync: 1` with `train.epochs: 1`). The first tokens of an answer have no
loss (`skip_tokens`), as in reference code, or the student learns to speak of an example that nobody
showed it.
"""

from typing import Literal

from pydantic import Field

from selfkd import GKD, LoopOptions, Run, context, loop


class SDFTOptions(LoopOptions):
    """Options of SDFT."""

    rounds: int = Field(1, ge=1)
    """Policies to train, one a round."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions drawn for each prompt."""
    context: str = (
        "\n\nHere is an example of a good response:\n{answer}\n\nGive a response of your own."
    )
    """What the teacher sees after the prompt: {answer} and other columns are filled in."""
    teacher: Literal["ema", "live", "base", "previous"] = "ema"
    """Which state of the policy teaches."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the moving average, a step (the paper: 0.99)."""
    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "reverse_kl"
    """The divergence; jsd is with equal shares."""
    skip_tokens: int = Field(3, ge=0)
    """First tokens of an answer without loss."""
    steps_per_sync: int | None = Field(4, ge=1)
    """Optimiser steps between two samplings, at most; null: the round's."""


@loop("sdft", paper="arXiv:2601.19897")
def sdft(run: Run, options: SDFTOptions) -> None:
    shown = context(options.context)
    n = options.samples_per_prompt
    for round in run.rounds(options.rounds):
        for part in round.segments(run.prompts, n=n, steps_per_sync=options.steps_per_sync):
            own = round.generate(part.prompts, n=n, policy=part.policy, label=part.label)
            round.judge(own, run.judge)
            objective = GKD(
                own,
                teacher=options.teacher,
                teacher_view=shown,
                kind=options.kind,
                ema_decay=options.ema_decay,
                skip_tokens=options.skip_tokens,
            )
            round.train(objective, segment=part)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=n), run.judge)
