"""SPIN: prefer given completions to one's own until the two cannot be told apart.

Chen et al. 2024, "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
arXiv:2401.01335.

Each round the policy answers every prompt once. The given completion is preferred to that answer,
whatever it says: no judge decides. The next policy is trained from the last one, which is also the
reference, with the logistic loss on the difference of log-ratios. The pairs of the round before are
kept. Once policy and data agree there is nothing left to learn, so the data is the ceiling.

The schedule is part of the method: lambda (here `betas`) rises and the learning rate falls in later
rounds. In small experiments a second round with the first one's settings destroys the policy.

Departures: the defaults are the paper's (reference code: beta 0.1, rate 5e-7 and 3 epochs in all
rounds), but learning rates are factors on the config's, and its 2 epochs a round are config too
(`train.epochs`). The YAML has other numbers, as its comments say. The judge only measures.
"""

from pydantic import model_validator

from selfkd import DPO, LoopOptions, Run, from_columns, given_own, loop


class SPINOptions(LoopOptions):
    """Options of SPIN."""

    completion: str = "{answer}"
    """The given completion: text with {answer} or {any column} of the prompt filled in."""
    betas: tuple[float, ...] = (0.1, 0.1, 0.1, 5.0)
    """Lambda of each round, the last one from then on."""
    learning_rates: tuple[float, ...] = (1.0, 1.0, 0.2, 0.2)
    """Factors on the learning rate of each round, the last one from then on."""
    keep_previous: bool = True
    """Train on the pairs of the round before as well."""

    @model_validator(mode="after")
    def _complete(self) -> "SPINOptions":
        if not self.betas or not self.learning_rates or min(*self.betas, *self.learning_rates) <= 0:
            raise ValueError("betas and learning_rates each need a number, and all above 0")
        return self


@loop("spin", paper="arXiv:2401.01335")
def spin(run: Run, options: SPINOptions) -> None:
    given_text = from_columns(options.completion)
    before = []
    for round in run.rounds(options.rounds):
        own = round.generate(run.prompts, n=1)
        round.judge(own, run.judge)
        texts = {p.id: given_text(p) for p in own.prompts}
        given = round.demonstrate(own.prompts, texts, label="given")
        pairs = round.pair(own, given, rule=given_own())
        rate = run.config.train.learning_rate * round.scheduled(options.learning_rates)
        data = [*before, pairs]
        round.train(DPO(*data, beta=round.scheduled(options.betas)), learning_rate=rate)
        round.evaluate(run.heldout, run.gold_judge)
        before = [pairs] if options.keep_previous else []
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=1), run.judge)
