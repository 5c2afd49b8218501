"""GKD: learn a teacher's next-token distributions on one's own samples.

Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated
Mistakes", arXiv:2306.13649, algorithm 1.

A share of the prompts is answered by the student (on-policy), the rest by the data set or by the
teacher. On all of these tokens the student is drawn towards the teacher's distribution, by a
divergence of choice: forward KL, reverse KL, or the generalised Jensen-Shannon divergence between
them. f-Distill (Wen et al. 2023, arXiv:2307.15190) is `kind: tvd` or `jsd` with half the samples
from the teacher, `forward_kl` with all of them from it, `reverse_kl` with none. There each side's
samples count in its own term of the jsd alone, here in both; there the teacher's samples are made
once, and the student is first trained on them, here neither.

Departures: the paper tosses once a step whether its batch is on-policy; here each prompt of a step
is, with that probability. `off_policy: stored` takes the earlier samples of the student for the
other side, and tosses once a segment. The student samples anew every `steps_per_sync` optimiser
steps or sooner, not every step, so what it learns from within a round is less than that many steps
old. The judge only measures.
"""

from typing import Literal

from pydantic import Field, model_validator

from selfkd import GKD, LoopOptions, Round, Run, Samples, Segment, from_columns, loop


class GKDOptions(LoopOptions):
    """Options of GKD."""

    teacher: str
    """Who teaches: a model directory, a known name, a hub id, or base, previous or best."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions drawn for each prompt."""
    on_policy_fraction: float = Field(1.0, ge=0, le=1)
    """Lambda: the share of prompts that the student answers itself."""
    off_policy: Literal["teacher", "given", "stored"] = "teacher"
    """Who answers the others: the teacher, the data set, or the student some time ago."""
    completion: str = "{answer}"
    """The data set's completion, with columns of the prompt filled in."""
    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"] = "jsd"
    """The divergence."""
    beta: float = Field(0.5, gt=0, lt=1)
    """The teacher's share in the mixture of jsd; how far the skewed kinds are skewed."""
    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits in the loss."""
    steps_per_sync: int | None = Field(None, ge=1)
    """Optimiser steps between two samplings, at most; default: the round's."""
    max_staleness: int | None = Field(None, ge=0)
    """Refuse samples that are more optimiser steps old."""

    @model_validator(mode="after")
    def _sampling_teacher(self) -> "GKDOptions":
        if self.on_policy_fraction < 1 and self.off_policy == "teacher" and self.own_teacher:
            raise ValueError(f"teacher {self.teacher} cannot sample: set off_policy: given")
        return self

    @property
    def own_teacher(self) -> bool:
        """Whether the teacher is the student in some state but its first."""
        return self.teacher in ("previous", "best", "live", "ema")


def answers(
    round: Round, part: Segment, teacher: str, stored: list[Samples], options: GKDOptions
) -> tuple[Samples | None, Samples | None]:
    """What a segment learns from: the student's samples, and others' or earlier ones."""
    n, share = options.samples_per_prompt, options.on_policy_fraction
    if options.off_policy == "stored" and stored and round.rng.random() >= share:
        return None, stored[int(round.rng.integers(len(stored)))]
    tossed = round.rng.random(len(part.prompts)) < share
    if options.off_policy == "stored":
        tossed[:] = True
    own = [p for p, on in zip(part.prompts, tossed, strict=True) if on]
    rest = [p for p, on in zip(part.prompts, tossed, strict=True) if not on]
    mine, others = None, None
    if own:
        mine = round.generate(own, n=n, policy=part.policy, label=part.label)
    if rest and options.off_policy == "teacher":
        others = round.generate(rest, n=n, policy=teacher, label=part.labelled("teacher"))
    elif rest:
        texts = {p.id: from_columns(options.completion)(p) for p in rest}
        others = round.demonstrate(rest, texts, label=part.labelled("given"))
    return mine, others


@loop("gkd", paper="arXiv:2306.13649")
def gkd(run: Run, options: GKDOptions) -> None:
    teacher = run.teacher(options.teacher)
    divergence = options.model_dump(include={"kind", "beta", "temperature", "max_staleness"})
    again = options.on_policy_fraction < 1 and options.off_policy != "teacher"
    n, stored = options.samples_per_prompt, []
    for round in run.rounds(options.rounds):
        for part in round.segments(run.prompts, n=n, steps_per_sync=options.steps_per_sync):
            own, others = answers(round, part, teacher, stored, options)
            if own:
                round.judge(own, run.judge)
                stored.append(own)
            data = [samples for samples in (own, others) if samples]
            round.train(GKD(*data, teacher=teacher, keep_states=again, **divergence), segment=part)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=n), run.judge)
