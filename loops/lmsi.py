"""LMSI: learn from the answer that most of one's own attempts agree on; no labels.

Huang et al. 2023, "Large Language Models Can Self-Improve", arXiv:2210.11610.

The policy answers every question many times under worked examples. Its most frequent answer is the
label; every path that ends in it is kept, right or wrong, and learnt in four formats: worked
examples and question -> path; examples without their working and question -> answer; question and a
step-by-step cue -> path; question -> answer. Training starts from the base model.

Greedy accuracy after training can hardly pass the accuracy of the vote before it: the vote is all
that is learnt. Where the vote is mostly wrong, the policy becomes sure of what is wrong. The vote
is the judge `majority`; `gold_judge` only measures.

Departures: the paper does one round; `rounds` may be more. The two answer-only formats have one row
a question, where the paper has one a path. Paths that were cut off have no vote (`majority`).
Held-out answers are greedy; the paper also votes on them after training, at temperature 1.2. Its
10,000 steps at rate 5e-5 on batches of 32 are config (`train`).
"""

from typing import Literal

from pydantic import Field, model_validator

from selfkd import (
    SFT,
    LoopOptions,
    Mixture,
    Run,
    affix,
    correct,
    everything,
    fewshot,
    finished,
    loop,
    plain,
)

Format = Literal["shots", "direct_shots", "cue", "direct"]


class LMSIOptions(LoopOptions):
    """Options of LMSI."""

    rounds: int = Field(1, ge=1)
    """Policies to train, one a round."""
    samples_per_prompt: int = Field(32, ge=1)
    """Paths drawn for each question."""
    formats: tuple[Format, ...] = ("shots", "direct_shots", "cue", "direct")
    """Under which views paths (shots, cue) and bare answers (direct_shots, direct) are learnt."""
    cue: str = "\nLet's think step by step."
    """What the format `cue` adds to the question; may be empty."""
    shots: tuple[tuple[str, str], ...] = ()
    """Worked examples (question, path) shown while sampling."""
    direct_shots: tuple[tuple[str, str], ...] = ()
    """The same examples with bare answers, for the format `direct_shots`."""
    start: Literal["base", "previous"] = "base"
    """What each round fine-tunes."""

    @model_validator(mode="after")
    def _complete(self) -> "LMSIOptions":
        if not self.formats:
            raise ValueError("formats must name one at least")
        return self


@loop("lmsi", paper="arXiv:2210.11610")
def lmsi(run: Run, options: LMSIOptions) -> None:
    sampled = fewshot(options.shots)
    views = {
        "shots": sampled,
        "direct_shots": fewshot(options.direct_shots),
        "cue": affix(options.cue) if options.cue else plain,
        "direct": plain,
    }
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.samples_per_prompt, view=sampled)
        scored = round.judge(samples, run.blind_judge)
        round.audit(samples, run.gold_judge)
        paths = round.keep(scored, finished() | correct())
        parts = [SFT(paths, view=views[f]) for f in options.formats if f in ("shots", "cue")]
        if bare := [f for f in options.formats if f.startswith("direct")]:
            labels = {s.prompt.id: scored.verdicts[s.id].answer or "" for s, _ in paths.rows()}
            labelled = [p for p in samples.prompts if p.id in labels]
            answers = round.demonstrate(labelled, labels, label="answers")
            kept = round.keep(answers, everything())
            parts += [SFT(kept, view=views[f]) for f in bare]
        round.train(Mixture(*parts), start=options.start)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    samples = last.generate(run.prompts, n=options.samples_per_prompt, view=sampled)
    last.judge(samples, run.judge)
    last.audit(samples, run.gold_judge)
