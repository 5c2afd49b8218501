"""The control without a judge: learn from everything one samples.

Whatever a loop gains must be compared with this, because training on one's own samples already
changes style and length; some models gain from just that (arXiv:2604.01193). The judge only
measures here; nothing it says is used.
"""

from typing import Literal

from pydantic import Field

from selfkd import SFT, LoopOptions, Run, at_most, finished, loop


class RawOptions(LoopOptions):
    """Options of the control."""

    samples_per_prompt: int = Field(8, ge=1)
    """Completions drawn for each prompt."""
    max_kept_per_prompt: int = Field(4, ge=1)
    """Completions of a prompt that are learnt from, a random choice."""
    start: Literal["base", "previous"] = "previous"
    """What each round fine-tunes."""


@loop("raw")
def raw(run: Run, options: RawOptions) -> None:
    rule = finished() | at_most(options.max_kept_per_prompt)
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.samples_per_prompt)
        kept = round.keep(round.judge(samples, run.judge), rule)
        round.train(SFT(kept), start=options.start)
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=options.samples_per_prompt), run.judge)
