"""Iterative RPO: prefer right reasoning to wrong, and keep what is preferred likely.

Pang et al. 2024, "Iterative Reasoning Preference Optimization", arXiv:2404.19733.

Each round the policy answers every prompt N times; the reference answer says which are right. For
each prompt with both kinds K pairs are made by going through right and wrong ones side by side.
The next policy is trained from the last one, which is also the reference, on the DPO loss plus
alpha times the negative log-likelihood of the chosen answer per token. Without that term the chosen
answers themselves become unlikely (`alpha: 0` shows it).

Departures: copies of an answer are paired once, since small models repeat themselves; the paper
does not say. It raises the temperature in later rounds (`temperatures`), and picks the number of
steps on held-out prompts; here epochs are fixed and the gate guards what is kept.
"""

from pydantic import Field

from selfkd import DPO, LoopOptions, Round, Run, Samples, fewshot, k_zip, loop


class IterativeRPOOptions(LoopOptions):
    """Options of Iterative RPO."""

    samples_per_prompt: int = Field(8, ge=2)
    """Completions drawn for each prompt (the paper: 30)."""
    pairs_per_prompt: int = Field(4, ge=1)
    """Pairs made for each prompt with right and wrong completions (the paper: 10)."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference: smaller lets it go further."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the likelihood of what is chosen; 0 is plain DPO."""
    temperatures: tuple[float, ...] = ()
    """Sampling temperature of each round, the last one from then on; default: the config's."""
    shots: tuple[tuple[str, str], ...] = ()
    """Worked examples (question, answer) shown while sampling, never trained on."""


def sampled(round: Round, run: Run, options: IterativeRPOOptions) -> Samples:
    """N answers to each prompt, at the round's temperature."""
    sampling, view = run.config.sampling, fewshot(options.shots)
    if options.temperatures:
        temperature = round.scheduled(options.temperatures)
        sampling = sampling.model_copy(update={"temperature": temperature})
    return round.generate(run.prompts, n=options.samples_per_prompt, sampling=sampling, view=view)


@loop("iterative_rpo", paper="arXiv:2404.19733")
def iterative_rpo(run: Run, options: IterativeRPOOptions) -> None:
    for round in run.rounds(options.rounds):
        scored = round.judge(sampled(round, run, options), run.judge)
        pairs = round.pair(scored, rule=k_zip(options.pairs_per_prompt))
        round.train(DPO(pairs, beta=options.beta, alpha=options.alpha), start="previous")
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    last.judge(sampled(last, run, options), run.judge)
