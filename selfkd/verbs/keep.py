"""Records what was decided about samples, each with its reason."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa

from selfkd.ledger import Step
from selfkd.rundir import counts

if TYPE_CHECKING:
    from selfkd.round import Round


def record_decisions(
    round: "Round", step: Step, tables: Iterable[pa.Table], rule_name: str
) -> None:
    """Write rows of `DECISIONS`, a shard each, and how many samples were dropped for which reason.

    What is recorded already is counted again but not written.
    """
    dropped: Counter[str] = Counter()
    decided = 0
    for index, table in enumerate(tables):
        if not step.has(index):
            step.write(index, table)
        decided += table.num_rows
        out = pa.array(~table.column("kept").to_numpy())
        dropped.update(counts(table.filter(out).column("reason")))
    kept = decided - dropped.total()
    round.finish(step, {"kept": kept, "dropped": dict(dropped), "rule": rule_name})
