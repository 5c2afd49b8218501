"""OPSD: learn on one's own attempts from oneself, shown the answer.

Zhao et al. 2026, "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
arXiv:2601.18734.

The policy attempts each prompt. The same model, as it was before any training and with the
reference answer in its prompt, says at every token of the attempt what it would write next, and the
student is drawn towards that by a Jensen-Shannon divergence. Unlike a reward this tells each token
what it should have been, and it is given on wrong attempts too. It can teach nothing that the model
does not know once it has seen the answer: `teacher_prompts` measures how much that is.

Departures: `below` learns from failed attempts only. The paper trains an adapter and switches it
off for the teacher; here a fixed teacher is asked before the first step and not kept, whether there
is an adapter or not. Divergences of single tokens are not clipped (a later change of the reference
code). The student's prompt has the chat template like the teacher's; in the runs whose numbers were
released it had none.
"""

from typing import Literal

from pydantic import Field

from selfkd import GKD, LoopOptions, Run, below, context, everything, loop


class OPSDOptions(LoopOptions):
    """Options of OPSD."""

    samples_per_prompt: int = Field(1, ge=1)
    """Attempts at each prompt."""
    context: str = "\n\nThe answer is {answer}."
    """What the teacher sees after the prompt: {answer} and other columns are filled in."""
    teacher: Literal["base", "previous", "live", "ema"] = "base"
    """Which state of the policy teaches."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the moving average, a step."""
    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "jsd"
    """The divergence."""
    beta: float = Field(0.5, gt=0, lt=1)
    """The teacher's share in the mixture of jsd."""
    below: float | None = None
    """Learn from attempts with a reward under this only; default: from all."""
    steps_per_sync: int | None = Field(None, ge=1)
    """Optimiser steps between two samplings, at most; default: the round's."""
    teacher_prompts: int = Field(0, ge=0)
    """In round 0 the base, shown the answer, answers so many prompts itself (label `teacher`)."""


@loop("opsd", paper="arXiv:2601.18734")
def opsd(run: Run, options: OPSDOptions) -> None:
    shown = context(options.context)
    rule = everything() if options.below is None else below(options.below)
    n = options.samples_per_prompt
    for round in run.rounds(options.rounds):
        for part in round.segments(run.prompts, n=n, steps_per_sync=options.steps_per_sync):
            own = round.generate(part.prompts, n=n, policy=part.policy, label=part.label)
            kept = round.keep(round.judge(own, run.judge), rule)
            objective = GKD(
                kept,
                teacher=options.teacher,
                teacher_view=shown,
                kind=options.kind,
                beta=options.beta,
                ema_decay=options.ema_decay,
            )
            round.train(objective, segment=part)
        if options.teacher_prompts and round.number == 0:
            prompts = run.prompts.train(0)[: options.teacher_prompts]
            told = round.generate(prompts, n=1, policy="base", view=shown, label="teacher")
            round.judge(told, run.judge)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=n), run.judge)
