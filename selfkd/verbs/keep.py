"""Decides about samples, and records what was decided, each with its reason."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfkd.ledger import Step
from selfkd.records import DECISIONS, Decision, rows_table
from selfkd.rules import Candidates, Rule
from selfkd.weights import Weighting

if TYPE_CHECKING:
    from selfkd.round import Round


def decide(
    candidates: Candidates, rule: Rule, weights: Weighting | None, rng: np.random.Generator
) -> list[Decision]:
    """What a rule, and then a weighting, make of each candidate."""
    reasons = rule.apply(candidates, rng)
    found = weights.weigh(candidates) if weights else np.ones(len(candidates))
    decisions = []
    for i, (reason, weight) in enumerate(zip(reasons, found.tolist(), strict=True)):
        if reason is None and not weight > 0:
            reason = "weight 0" if weight == 0 else "no reward to weigh it by"
        kept = reason is None
        sample, prompt = candidates.sample_ids[i], candidates.prompt_ids[i]
        decisions.append(Decision(sample, prompt, kept, reason or "kept", weight if kept else 1.0))
    return decisions


def record_decisions(
    round: "Round", step: Step, decisions: Sequence[Decision], rule_name: str
) -> None:
    """Write the decisions that a rule made, and how many samples it dropped for which reason."""
    step.write(0, rows_table(decisions, DECISIONS))
    dropped = Counter(d.reason for d in decisions if not d.kept)
    kept = len(decisions) - dropped.total()
    round.finish(step, {"kept": kept, "dropped": dict(dropped), "rule": rule_name})
