"""MiniLLM: distil by reverse KL, on the student's own samples and some of the teacher's.

Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv:2306.08543.

Reverse KL makes the student avoid what the teacher finds unlikely, where forward KL makes it spread
over all that the teacher might say. It is an expectation over the student's samples, so those are
what is trained on.

Departures: the paper's gradient has two parts, that of the next token's divergence and, by policy
gradient, that of what the token leads to. Only the first is here, exact over the vocabulary: it has
no variance, needs no reward normalisation or clipping, and ignores how a token shapes what comes
later. The paper draws each token from a mixture, 0.2 teacher and 0.8 student, with importance
weights; here a share of whole samples is the teacher's, unweighted, which keeps its guard against
degenerate samples and biases the expectation. There is no language-model loss on other text.
"""

from pydantic import Field

from selfkd import GKD, LoopOptions, Run, loop


class MiniLLMOptions(LoopOptions):
    """Options of MiniLLM."""

    teacher: str
    """Who teaches: a model directory, a known name, a hub id, or base."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions drawn for each prompt."""
    teacher_share: float = Field(0.2, ge=0, lt=1)
    """Share of the prompts that the teacher answers."""
    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits in the loss."""
    steps_per_sync: int | None = Field(None, ge=1)
    """Optimiser steps between two samplings, at most; default: the round's."""


@loop("minillm", paper="arXiv:2306.08543")
def minillm(run: Run, options: MiniLLMOptions) -> None:
    teacher = run.teacher(options.teacher)
    n = options.samples_per_prompt
    for round in run.rounds(options.rounds):
        for part in round.segments(run.prompts, n=n, steps_per_sync=options.steps_per_sync):
            tossed = round.rng.random(len(part.prompts)) < options.teacher_share
            shown = [p for p, theirs in zip(part.prompts, tossed, strict=True) if theirs]
            own = [p for p, theirs in zip(part.prompts, tossed, strict=True) if not theirs]
            data = []
            if own:
                data.append(round.generate(own, n=n, policy=part.policy, label=part.label))
                round.judge(data[0], run.judge)
            if shown:
                label = part.labelled("teacher")
                data.append(round.generate(shown, n=n, policy=teacher, label=label))
            objective = GKD(
                *data, teacher=teacher, kind="reverse_kl", temperature=options.temperature
            )
            round.train(objective, segment=part)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=n), run.judge)
