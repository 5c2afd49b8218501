"""Records the prompts of a step: those that fit the engine, and their tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from selfkd.ledger import Step
from selfkd.prompts import PromptSource
from selfkd.records import Prompt, content_hash, prompts_table, read_prompts
from selfkd.sampling.base import Sampling
from selfkd.views import View

if TYPE_CHECKING:
    from selfkd.round import Round


def recorded_prompts(
    round: "Round",
    source: PromptSource | Sequence[Prompt],
    view: View,
    sampling: Sampling,
    label: str,
) -> tuple[list[Prompt], pa.ChunkedArray, Step]:
    """The prompts that fit, their tokens under `view`, and the step that records them."""
    drawn = source.train(round.number) if isinstance(source, PromptSource) else list(source)
    identity = content_hash([[p.id, dict(p.columns)] for p in drawn])
    args = {"prompts": identity, "view": view.name}
    step = round.step("prompts", label, args, len(drawn))
    if not step.finished:
        limit = round.run.setting.context - sampling.max_tokens
        tokens = round.run.render_all([view(p) for p in drawn])
        fits = [i for i, ids in enumerate(tokens) if len(ids) <= limit]
        step.write(0, prompts_table([drawn[i] for i in fits], [tokens[i] for i in fits]))
        round.finish(step, {"prompts": len(fits), "too_long": len(drawn) - len(fits)})
    table = step.read(0)
    return read_prompts(table), table.column("tokens"), step
