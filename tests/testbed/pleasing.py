"""A loop that pleases its judge and nothing else: DPO on the best and worst of each prompt."""

from pydantic import Field

from selfkd import DPO, LoopOptions, Run, best_worst, loop


class PleasingOptions(LoopOptions):
    """Options of the loop."""

    samples_per_prompt: int = Field(6, ge=2)
    """Completions drawn for each prompt."""


@loop("pleasing")
def pleasing(run: Run, options: PleasingOptions) -> None:
    """Prefer what the judge likes most to what it likes least."""
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.samples_per_prompt)
        pairs = round.pair(round.judge(samples, run.judge), rule=best_worst())
        round.train(DPO(pairs), start="previous")
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=options.samples_per_prompt), run.judge)
