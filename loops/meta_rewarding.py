"""Meta-Rewarding: the policy answers, judges its answers, and judges its judgements.

Wu et al. 2024, "Meta-Rewarding Language Models: Self-Improving Alignment with LLM-as-a-Meta-Judge",
arXiv:2407.19594.

As Self-Rewarding, but for two things. Length is held: of the answers close to a prompt's best score
the shortest is chosen, of those close to its worst the longest rejected (`rho`). And the judge
learns too: for each prompt the answer whose scores vary most is taken, its judgements are compared
two by two, in both orders, by the same policy, and from the wins, weighted against a preference for
a position, each judgement gets a strength; the strongest is preferred to the weakest. In the first
`judge_rounds` both kinds of pairs are learnt, later only the actor's.

The answers' scores are those of the judge `self_reward` (the paper: 11 draws); the meta-judge is
part of the loop, for its correction of a preference for a position is over the whole round.

Departures: the Elo ratings are Bradley-Terry strengths with half a game of prior. Only `compared`
judgements of an answer meet each other, where in the paper all 11 do. The seed judge (EFT) is that
of `self_rewarding` with `seed_stage`: start from its policy. Judgements longer than the token limit
are cut off and never chosen, where the paper drops long winners by a threshold. Instructions are
made up as in `self_rewarding`; the paper has 20,000, written by a larger model beforehand.
"""

from itertools import permutations
from pathlib import Path

from pydantic import Field

from selfkd import (
    DPO,
    Pairs,
    Prompt,
    Round,
    Run,
    Scored,
    best_worst,
    judgements,
    length_controlled,
    loop,
)
from selfkd.instructions import self_instruct
from selfkd.loops.self_rewarding import SelfJudgingOptions, judged


class MetaRewardingOptions(SelfJudgingOptions):
    """Options of Meta-Rewarding."""

    samples_per_prompt: int = Field(7, ge=2)
    """Answers to each prompt."""
    rho: float = Field(0.2, ge=0, lt=0.5)
    """How close to the best (worst) score counts as good (bad), in parts of their distance."""
    judge_rounds: int = Field(2, ge=0)
    """Rounds in which the judge learns as well."""
    compared: int = Field(3, ge=2)
    """Judgements of an answer that are compared, each with each in both orders (the paper: 11)."""
    versus: str = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").rstrip()
    """How two judgements are compared: {question}, {response}, {first} and {second}, and {mark}."""
    winner_pattern: str = r"^[\s*#]*Winner\**:(?:[\s*]*([AB])[\s*.]*$)?"
    """The last line that matches names the winner: its first group, A or B, if it has one."""


def judge_pairs(round: Round, run: Run, scored: Scored, options: MetaRewardingOptions) -> Pairs:
    """The strongest judgement of a contested answer against the weakest."""
    read, drawn = judgements.reader(run.judge), scored.judgements
    contests = judgements.contested(scored.samples.rows, drawn.rows, read, options.compared)
    asked = judgements.ask_which(
        [(s, a, b) for s, found in contests for a, b in permutations(found, 2)], options.versus
    )
    compared = round.generate(asked, n=1, label="comparisons")
    winners = judgements.winners_of(compared.rows, options.winner_pattern)
    rated = round.score(drawn, judgements.strengths(contests, winners), judge="meta")
    return round.pair(rated, rule=best_worst())


@loop("meta_rewarding", paper="arXiv:2407.19594")
def meta_rewarding(run: Run, options: MetaRewardingOptions) -> None:
    if options.judge_rounds:  # what the judge could not learn is refused before anything is asked
        judgements.reader(run.blind_judge)
        judgements.ask_which([], options.versus)
    made: list[Prompt] = []
    for round in run.rounds(options.rounds):
        prompts = self_instruct(round, made, options.created_per_round, options.rouge_limit)
        samples = round.generate(prompts, n=options.samples_per_prompt)
        scored = judged(round, run, samples, options)
        pairs = [round.pair(scored, rule=length_controlled(options.rho))]
        if round.number < options.judge_rounds:
            pairs.append(judge_pairs(round, run, scored, options))
        round.train(DPO(*pairs, beta=options.beta, alpha=options.alpha), start="previous")
        round.evaluate(run.heldout, run.gold_judge)
    last = run.final_round()
    judged(last, run, last.generate(run.prompts, n=options.samples_per_prompt), options)
