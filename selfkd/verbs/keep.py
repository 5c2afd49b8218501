"""Records what was decided about samples, each with its reason."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfkd.ledger import Step
from selfkd.records import DECISIONS, Decision, rows_table

if TYPE_CHECKING:
    from selfkd.round import Round


def record_decisions(
    round: "Round", step: Step, decisions: Sequence[Decision], rule_name: str
) -> None:
    """Write the decisions that a rule made, and how many samples it dropped for which reason."""
    step.write(0, rows_table(decisions, DECISIONS))
    dropped = Counter(d.reason for d in decisions if not d.kept)
    kept = len(decisions) - dropped.total()
    round.finish(step, {"kept": kept, "dropped": dict(dropped), "rule": rule_name})
