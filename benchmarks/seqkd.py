"""What `gkd` is measured against: fine-tune on a teacher's samples, one token each (sequence KD).

Kim & Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947. A loop by path:
`selfkd run benchmarks/seqkd.yaml teacher=runs/rest_em-001/policies/round-004`.
"""

from pydantic import Field

from selfkd import SFT, LoopOptions, Run, finished, loop


class SeqKDOptions(LoopOptions):
    """Options of sequence-level distillation."""

    teacher: str
    """Who answers: a model directory, a known name or a hub id."""
    samples_per_prompt: int = Field(1, ge=1)
    """The teacher's completions of each prompt."""


@loop("seqkd", paper="arXiv:1606.07947")
def seqkd(run: Run, options: SeqKDOptions) -> None:
    teacher = run.teacher(options.teacher)
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.samples_per_prompt, policy=teacher)
        round.judge(samples, run.judge)
        round.train(SFT(round.keep(samples, finished())), start="previous")
        round.evaluate(run.heldout, run.gold_judge)
