"""ReST: grow a data set from the policy, then improve on ever better parts of it.

Gulcehre et al. 2023, "Reinforced Self-Training (ReST) for Language Modeling", arXiv:2308.08998.

Grow: the policy answers every prompt many times, and a reward is given to each answer. Improve,
several times on the same data: fine-tune the last policy on the answers whose reward is over a
threshold that rises from step to step, with a lower learning rate each time, for as long as the
held-out reward rises; then grow again.

A round here is one Improve step, so that each has its policy and its point on the curve; a round
that starts a Grow has samples of its own. With `over_mean` no threshold of a Grow is below the mean
reward of its samples: the paper asks that of the first one, and the others may not fall behind it.

Departures: the paper mixes the supervised data it started from into every Grow; here the base model
stands for it, since prompts come without reference completions. It draws about 100 samples a source
and its thresholds are 0, 0.7, 0.8, 0.9, 0.95, 0.99 of rewards scaled to [0, 1]; the defaults here
are fewer. It stops improving by the learnt reward on held-out data; here by gold, and without gold
every threshold has its turn. Answers that were cut off or are empty are never learnt from. Losses
other than likelihood, which the paper found no better, are left out.
"""

from math import inf

from pydantic import Field, model_validator

from selfkd import SFT, LoopOptions, Run, above, finished, loop


class RestOptions(LoopOptions):
    """Options of ReST."""

    samples_per_prompt: int = Field(16, ge=1)
    """Completions drawn for each prompt in a Grow (the paper: about 100)."""
    thresholds: tuple[float, ...] = (0.0, 0.7, 0.9)
    """Rewards to pass in the Improve steps of one Grow, rising (the paper: 0, 0.7, ... 0.99)."""
    over_mean: bool = True
    """Raise each threshold to at least the mean reward of the grown samples."""
    learning_rate_decay: float = Field(0.5, gt=0, le=1)
    """Factor on the learning rate from one Improve to the next."""

    @model_validator(mode="after")
    def _rising(self) -> "RestOptions":
        if not self.thresholds or list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds must rise, got {list(self.thresholds)}")
        return self


@loop("rest", paper="arXiv:2308.08998")
def rest(run: Run, options: RestOptions) -> None:
    steps = len(options.thresholds)
    scored, step, mean = None, 0, -inf
    for round in run.rounds(options.rounds):
        if scored is None or step == steps:  # Grow
            samples = round.generate(run.prompts, n=options.samples_per_prompt)
            scored, step = round.judge(samples, run.judge), 0
            mean = scored.mean_reward() if options.over_mean else -inf
        threshold = max(options.thresholds[step], mean)
        kept = round.keep(scored, finished() | above(threshold))  # Improve
        rate = run.config.train.learning_rate * options.learning_rate_decay**step
        round.train(SFT(kept), start="previous", learning_rate=rate)
        round.evaluate(run.heldout, run.gold_judge)
        before, after = run.heldout_mean(round.policy), run.heldout_mean(run.newest)
        rose = before is None or after is None or after > before
        step = step + 1 if rose else steps
    last = run.final_round()
    last.judge(last.generate(run.prompts, n=options.samples_per_prompt), run.judge)
