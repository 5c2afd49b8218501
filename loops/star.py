"""STaR: learn from rationales that lead to the right answer, with a second chance under a hint.

Zelikman et al. 2022, "STaR: Bootstrapping Reasoning With Reasoning", arXiv:2203.14465.

Each round the policy answers every prompt once, greedily, under a few worked examples. What ends
in the right answer is kept. For the rest the model is shown the answer as a hint and asked to
reason towards it (rationalisation); what then ends right is kept too, with the hint removed from
the prompt that is trained on. The next policy is trained from the base model, never from the last
one, for 40 steps that grow by a fifth each round.

The paper's arithmetic runs use 300 steps and 20 more each round instead:
`{first_steps: 300, growth: 1, added_steps: 20}`.

Departures: the reference code draws at temperature 0.01 and top-p 0.9, we take temperature 0 from
the config; and unless told otherwise it lets epochs grow, we only steps. The paper warms up over
100 steps to a constant rate of 1e-6 and packs batches of 8 x 1024 tokens; here rate, schedule and
batch are config (`train`), and rows are not packed. Its second try has worked examples with hints;
without `hint_shots` ours has those of the first, which have none. A right answer that was cut off
is not learnt, nor tried again. Training sees the plain prompt; the paper also tries the worked
examples there.
"""

from typing import Literal

from pydantic import Field

from selfkd import SFT, LoopOptions, Run, correct, fewshot, finished, hint, loop


class StarOptions(LoopOptions):
    """Options of STaR."""

    rationalise: bool = True
    """Give failed prompts a second try with the answer as a hint."""
    hint: str = "\n\n(Hint: the answer is {answer}. Explain how to get there.)"
    """What is added to a failed prompt; {answer} is the reference answer."""
    shots: tuple[tuple[str, str], ...] = ()
    """Worked examples (question, rationale) shown while sampling, never trained on."""
    hint_shots: tuple[tuple[str, str], ...] = ()
    """Worked examples for the second try, hints included; default: `shots`, without hints."""
    first_steps: int = Field(40, ge=1)
    """Optimiser steps of the first round."""
    growth: float = Field(1.2, ge=1)
    """Factor on the steps from round to round."""
    added_steps: int = Field(0, ge=0)
    """Steps added from round to round."""
    start: Literal["base", "previous"] = "base"
    """What each round fine-tunes."""

    def steps(self, round: int) -> int:
        """Optimiser steps of a round."""
        return int(self.first_steps * self.growth**round) + self.added_steps * round


@loop("star", paper="arXiv:2203.14465")
def star(run: Run, options: StarOptions) -> None:
    view = fewshot(options.shots)
    hinted = fewshot(options.hint_shots or options.shots) | hint(options.hint)
    for round in run.rounds(options.rounds):
        tries = round.judge(round.generate(run.prompts, n=1, view=view), run.judge)
        learnt = [round.keep(tries, finished() | correct())]
        if options.rationalise:
            failed = tries.failed_prompts()
            second = round.generate(failed, n=1, view=hinted, label="rationalise", parents=tries)
            second = round.judge(second, run.judge)
            learnt.append(round.keep(second, finished() | correct()))
        round.train(SFT(*learnt), start=options.start, steps=options.steps(round.number))
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=1, view=view), run.judge)
