"""Self-Rewarding: the policy judges its own answers and learns to prefer what it judged better.

Yuan et al. 2024, "Self-Rewarding Language Models", arXiv:2401.10020.

Seed stage (round 0): fine-tune on given answers (IFT), and on judgements in the judge's form (EFT):
those of the base that agree with the truth, no score prevailing. Then each round: make up
instructions from examples, drop what resembles an earlier one; answer each N times; judge each
answer several times with the same policy on an additive 5-point scale and average (the judge
`self_reward`); pair best and worst, no ties; DPO from the last policy, which is also the reference.

Departures: the truth behind EFT is `gold_judge` (right or wrong) where the paper has human
rankings, and the judgements are the base's where it takes those of a model tuned on IFT. The policy
makes its instructions itself, drawn like its answers (`sampling`); in the paper's main run a larger
chat model does, at temperature 0.6 and top-p 0.9. Any judge that needs no reference may take the
place of `self_reward`, but only that one has judgements for the seed stage. `gold_judge` also looks
at what the policy judged (label `audit`), at answers to held-out prompts where made-up ones have no
reference; nothing is learnt from that.
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
    judgements,
    loop,
)
from selfkd.instructions import self_instruct


class SelfJudgingOptions(LoopOptions):
    """Options of loops whose policy judges itself."""

    samples_per_prompt: int = Field(4, ge=2)
    """Answers to each prompt."""
    beta: float = Field(0.1, gt=0)
    """How strongly the policy is held to the reference."""
    alpha: float = Field(0.0, ge=0)
    """Weight of the likelihood of what is chosen; the paper: 0."""
    created_per_round: int = Field(0, ge=0)
    """Instructions to ask for each round; 0 takes the config's prompts as they are."""
    rouge_limit: float = Field(0.7, gt=0, le=1)
    """A new instruction with this ROUGE-L to an earlier one is dropped."""
    probes: int = Field(1, ge=1)
    """Answers to each held-out prompt that judge and gold score, where prompts are made up."""


class SelfRewardingOptions(SelfJudgingOptions):
    """Options of Self-Rewarding."""

    seed_stage: bool = False
    """Spend round 0 on IFT and EFT."""
    pass_score: float = 3.0
    """Seed stage: a judgement agrees with the truth if right answers get this much, others less."""
    completion: str = "{answer}"
    """Seed stage: the given answer, with columns of the prompt filled in."""


def judged(round: Round, run: Run, samples: Samples, options: SelfJudgingOptions) -> Scored:
    """The policy's verdicts on its samples, with gold's beside them where that is possible."""
    scored = round.judge(samples, run.blind_judge)
    if not round.audit(samples, run.gold_judge) and run.gold_judge and run.heldout:
        probe = round.generate(run.heldout, n=options.probes, label="probe")
        round.judge(probe, run.judge)
        round.audit(probe, run.gold_judge)
    return scored


def seed(round: Round, run: Run, options: SelfRewardingOptions) -> None:
    """Round 0: learn given answers, and judgements that agree with the truth."""
    read = judgements.reader(run.blind_judge)
    samples = round.generate(run.prompts, n=options.samples_per_prompt)
    written = round.judge(samples, run.judge)
    truth = round.audit(samples, run.gold_judge)
    texts = {p.id: from_columns(options.completion)(p) for p in samples.prompts}
    learnt = [round.keep(round.demonstrate(samples.prompts, texts, label="given"), everything())]
    if truth is None:
        text = "the seed stage learns no judgements: there is no gold judge, or it lacks answers"
        run.emit("message", text=text, level="warning")
    else:
        drawn = written.judgements
        agrees, told = judgements.agreement(drawn.rows, read, truth.verdicts, options.pass_score)
        scored = round.score(drawn, agrees, judge="agreement", answers=told)
        learnt.append(round.keep(scored, finished() | correct() | balanced()))
    round.train(SFT(*learnt), start="base")


@loop("self_rewarding", paper="arXiv:2401.10020")
def self_rewarding(run: Run, options: SelfRewardingOptions) -> None:
    made: list[Prompt] = []
    for round in run.rounds(options.rounds):
        if options.seed_stage and round.number == 0:
            seed(round, run, options)
        else:
            prompts = self_instruct(round, made, options.created_per_round, options.rouge_limit)
            samples = round.generate(prompts, n=options.samples_per_prompt)
            scored = judged(round, run, samples, options)
            pairs = round.pair(scored, rule=best_worst())
            round.train(DPO(pairs, beta=options.beta, alpha=options.alpha), start="previous")
        round.evaluate(run.heldout, run.gold_judge)
    final = run.final_round()
    judged(final, run, final.generate(run.prompts, n=options.samples_per_prompt), options)
