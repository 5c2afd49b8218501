"""Self-Rewarding: the policy judges its own answers and learns to prefer what it judged better.

Yuan et al. 2024, "Self-Rewarding Language Models", arXiv:2401.10020.

Seed stage (round 0): fine-tune on given answers (IFT), and on judgements in the judge's form (EFT):
those of the base that agree with the truth, no score prevailing. Then each round: make up
instructions from examples, drop what resembles an earlier one; answer each N times; judge each
answer several times with the same policy on an additive 5-point scale and average; pair best and
worst, no ties; DPO from the last policy, which is also the reference.

Departures: the truth behind EFT is `gold_judge` (right or wrong) where the paper has human
rankings. The policy makes its instructions itself; in the paper's main run a larger chat model
does. `run.judge` only measures, beside the policy's own rewards (label `audit`).
"""

from pydantic import Field

from selfkd import (
    DPO,
    SFT,
    LoopOptions,
    Prompt,
    Round,
    Run,
    Samples,
    Scored,
    balanced,
    best_worst,
    correct,
    everything,
    finished,
    from_columns,
    instructions,
    judgements,
    loop,
)


class SelfRewardingOptions(LoopOptions):
    """Options of Self-Rewarding."""

    samples_per_prompt: int = Field(4, ge=2)
    """Answers to each prompt."""
    judgements_per_sample: int = Field(3, ge=1)
    """Judgements of each answer, averaged."""
    rubric: str = judgements.RUBRIC
    """How a judgement is asked for; {question} and {response} are filled in, and {mark}."""
    score_pattern: str = judgements.SCORE
    """The last line that matches is the score: its first group, a number."""
    pass_score: float = 3.0
    """Seed stage: a judgement agrees with the truth if right answers get this much, others less."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    alpha: float = Field(0.0, ge=0)
    """Weight of the likelihood of what is chosen; the paper: 0."""
    created_per_round: int = Field(0, ge=0)
    """Instructions to ask for each round; 0 takes the config's prompts as they are."""
    rouge_limit: float = Field(0.7, gt=0, le=1)
    """A new instruction with this ROUGE-L to an earlier one is dropped."""
    seed_stage: bool = False
    """Spend round 0 on IFT and EFT."""
    completion: str = "{answer}"
    """Seed stage: the given answer, with columns of the prompt filled in."""


def judged(round: Round, samples: Samples, options: SelfRewardingOptions) -> tuple[Samples, Scored]:
    """The policy's judgements of its samples, and the samples with their mean scores."""
    asked = judgements.ask(samples.rows, options.rubric)
    drawn = round.generate(asked, n=options.judgements_per_sample, label="judgements")
    rewards = judgements.scores(drawn.rows, judgements.read(options.score_pattern))
    return drawn, round.score(samples, rewards, judge="self")


def created(
    round: Round, run: Run, made: list[Prompt], options: SelfRewardingOptions
) -> list[Prompt]:
    """The prompts of a round: new instructions, also added to `made`, or the config's."""
    if not options.created_per_round:
        return run.prompts.train(round.number)
    texts, old = [p.text for p in run.prompts.train(round.number)], [p.text for p in made]
    asked = instructions.creation_prompts(texts, old, options.created_per_round, round.rng)
    rule = finished() | instructions.novel([*texts, *old], options.rouge_limit)
    drawn = round.generate(asked, n=1, label="instructions")
    found = [instructions.instruction(s.completion) for s, _ in round.keep(drawn, rule).rows()]
    made += [Prompt.of(text) for text in found]
    return made[len(old) :]


def seed(round: Round, run: Run, options: SelfRewardingOptions) -> None:
    """Round 0: learn given answers, and judgements that agree with the truth."""
    samples = round.generate(run.prompts, n=options.samples_per_prompt)
    drawn, _ = judged(round, samples, options)
    texts = {p.id: from_columns(options.completion)(p) for p in samples.prompts}
    learnt = [round.keep(round.demonstrate(samples.prompts, texts, label="given"), everything())]
    if run.gold_judge:
        truth = round.judge(samples, run.gold_judge, label="audit").verdicts
        reader = judgements.read(options.score_pattern)
        agrees, read = judgements.agreement(drawn.rows, reader, truth, options.pass_score)
        scored = round.score(drawn, agrees, judge="agreement", answers=read)
        learnt.append(round.keep(scored, finished() | correct() | balanced()))
    round.train(SFT(*learnt), start="base")


@loop("self_rewarding", paper="arXiv:2401.10020")
def self_rewarding(run: Run, options: SelfRewardingOptions) -> None:
    made: list[Prompt] = []
    for round in run.rounds(options.rounds):
        if options.seed_stage and round.number == 0:
            seed(round, run, options)
        else:
            prompts = created(round, run, made, options)
            samples = round.generate(prompts, n=options.samples_per_prompt)
            _, scored = judged(round, samples, options)
            if not options.created_per_round:
                round.judge(samples, run.judge, label="audit")
            pairs = round.pair(scored, rule=best_worst())
            round.train(DPO(pairs, beta=options.beta, alpha=options.alpha), start="previous")
        round.evaluate(run.heldout, run.gold_judge)
    final = run.final_round()
    judged(final, final.generate(run.prompts, n=options.samples_per_prompt), options)
