"""ReST-EM: learn from one's own correct answers, from the base model again each round.

Singh et al. 2024, "Beyond Human Data: Scaling Self-Training for Problem-Solving with Language
Models", arXiv:2312.06585.

E-step: the current policy answers every prompt several times, and a rule that compares with the
reference keeps what is right, at most a few different answers a prompt (the paper: 10 of 32 on
MATH), a random choice among them so that easy prompts do not dominate. M-step: supervised
fine-tuning on what was kept, starting from the base model. The paper stops when held-out reward
stops rising; here the gate of the run decides that.

Departures: the paper samples with top-k 40 at T 0.7 under a few-shot prompt; that is config
(`sampling`, `shots`). Learning rate and batch size are not reported there. Answers that were cut
off or are empty are never learnt from. `start: previous` goes on from the last policy instead,
which the paper found no worse in domain, and worse in transfer; `learning_rate_decay` then lets the
rounds settle, as in ReST. `distinct: false` counts an answer as often as it was given.
"""

from typing import Literal

from pydantic import Field

from selfkd import SFT, LoopOptions, Run, at_most, correct, fewshot, finished, loop, unique


class RestEMOptions(LoopOptions):
    """Options of ReST-EM."""

    samples_per_prompt: int = Field(8, ge=1)
    """Completions drawn for each prompt."""
    max_kept_per_prompt: int = Field(4, ge=1)
    """Most correct completions of a prompt that are learnt from."""
    distinct: bool = True
    """Take equal completions of a prompt once. With answers of a few tokens this favours wordy
    ways to say them over sure ones, since those rarely repeat."""
    start: Literal["base", "previous"] = "base"
    """What each round fine-tunes."""
    learning_rate_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate from round to round."""
    shots: tuple[tuple[str, str], ...] = ()
    """Worked examples (question, answer) shown while sampling, never trained on."""


@loop("rest_em", paper="arXiv:2312.06585")
def rest_em(run: Run, options: RestEMOptions) -> None:
    view = fewshot(options.shots)
    right = finished() | correct() | unique() if options.distinct else finished() | correct()
    rule = right | at_most(options.max_kept_per_prompt)
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.samples_per_prompt, view=view)  # E-step
        kept = round.keep(round.judge(samples, run.judge), rule)
        rate = run.config.train.learning_rate * options.learning_rate_decay**round.number
        round.train(SFT(kept), start=options.start, learning_rate=rate)  # M-step
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=options.samples_per_prompt, view=view), run.judge)
