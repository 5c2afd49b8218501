"""Records which samples a pair rule compares, and why the others are in no pair."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selfkd.ledger import Step
from selfkd.pairs import PairRule
from selfkd.records import DECISIONS, PAIRS, Decision, Pair, rows_table
from selfkd.rules import Candidates
from selfkd.tables import Samples, Scored, joined
from selfkd.verbs.keep import record_decisions

if TYPE_CHECKING:
    from selfkd.round import Round


def record_pairs(
    round: "Round", kept: Step, paired: Step, parts: Sequence[Scored | Samples], rule: PairRule
) -> None:
    """Write decisions to the step `kept` and pairs to the step `paired`, where still missing."""
    if kept.finished and paired.finished:
        return
    candidates = joined(parts)
    rng = np.random.default_rng([round.run.config.seed, round.number])
    pairs, reasons = rule.apply(candidates, rng)
    if not kept.finished:
        decisions = rows_table(_decisions(candidates, pairs, reasons), DECISIONS)
        record_decisions(round, kept, [decisions], rule.name)
    if not paired.finished:
        paired.write(0, rows_table([_pair(candidates, *pair) for pair in pairs], PAIRS))
        round.finish(paired, {**_summary(candidates, pairs), "rule": rule.name})


def _decisions(
    c: Candidates, pairs: Sequence[tuple[int, int]], reasons: Sequence[str | None]
) -> list[Decision]:
    chosen, rejected = ({pair[side] for pair in pairs} for side in (0, 1))
    roles = [
        " and ".join(n for n, side in (("chosen", chosen), ("rejected", rejected)) if i in side)
        for i in range(len(c))
    ]
    return [
        Decision(c.sample_ids[i], c.prompt_ids[i], reasons[i] is None, reasons[i] or roles[i])
        for i in range(len(c))
    ]


def _pair(c: Candidates, chosen: int, rejected: int) -> Pair:
    margin = float(c.rewards[chosen] - c.rewards[rejected])
    return Pair(
        prompt_id=c.prompt_ids[chosen],
        chosen_id=c.sample_ids[chosen],
        rejected_id=c.sample_ids[rejected],
        margin=None if np.isnan(margin) else margin,
    )


def _summary(c: Candidates, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    margins = [float(c.rewards[i] - c.rewards[j]) for i, j in pairs]
    known = [m for m in margins if not np.isnan(m)]
    return {
        "pairs": len(pairs),
        "prompts": len({c.prompt_ids[i] for i, _ in pairs}),
        "margin_mean": float(np.mean(known)) if known else None,
        "chosen_length": float(np.mean([c.lengths[i] for i, _ in pairs])) if pairs else None,
        "rejected_length": float(np.mean([c.lengths[j] for _, j in pairs])) if pairs else None,
    }
