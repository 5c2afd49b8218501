"""Records the prompts of a step: those that fit the engine, their tokens, and which do not."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from selfkd.files import write_atomically
from selfkd.ledger import Step
from selfkd.prompts import PromptSource
from selfkd.records import Prompt, content_hash, prompts_table, read_prompts
from selfkd.sampling.base import Sampling
from selfkd.views import View

if TYPE_CHECKING:
    from selfkd.round import Round

DROPPED = "dropped.jsonl"
"""In the step, where prompts are dropped: one object a line, by id, with the reason."""


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
        sizes = {p.id: len(ids) for p, ids in zip(drawn, tokens, strict=True) if len(ids) > limit}
        if sizes:
            _record_dropped(step, sizes, limit)
        step.write(0, prompts_table([drawn[i] for i in fits], [tokens[i] for i in fits]))
        round.finish(step, {"prompts": len(fits), "too_long": len(drawn) - len(fits)})
    table = step.read(0)
    return read_prompts(table), table.column("tokens"), step


def _record_dropped(step: Step, sizes: Mapping[str, int], limit: int) -> None:
    """List prompts of more tokens than the context has room for beside the completion."""
    rows = [
        {"prompt_id": id, "reason": "too_long", "tokens": size, "limit": limit}
        for id, size in sizes.items()
    ]
    write_atomically(step.path / DROPPED, "".join(json.dumps(r) + "\n" for r in rows).encode())
