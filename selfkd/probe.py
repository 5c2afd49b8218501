"""The few fixed texts on which a run measures how far its policies have moved."""

from collections.abc import Sequence
from pathlib import Path

from selfkd.rundir import HELDOUT, StepRecord, find_rows, of_verb, round_steps
from selfkd.training.base import Text

TEXTS = 16
TOKENS = 64
"""Most tokens of a text after its prompt."""


def probe_texts(run_dir: Path) -> tuple[Text, ...]:
    """The base's own answers of round 0: to held-out prompts if there are any, else samples.

    One a prompt, the first `TEXTS` that are not empty, so that the same run always gives the same.
    """
    steps = round_steps(run_dir, 0)
    for label in (HELDOUT, ""):
        own = [s for s in steps if s.label == label]
        if found := _texts(of_verb(own, "prompts"), of_verb(own, "generate")):
            return found
    return ()


def _texts(prompts: Sequence[StepRecord], answers: Sequence[StepRecord]) -> tuple[Text, ...]:
    chosen: dict[str, list[int]] = {}
    tables = (t for s in answers for t in s.tables(["prompt_id", "tokens"]))
    for row in (row for table in tables for row in table.to_pylist()):
        if len(chosen) == TEXTS:
            break
        if row["tokens"]:
            chosen.setdefault(row["prompt_id"], row["tokens"])
    asked = find_rows(prompts, ("id", "tokens"), chosen)
    return tuple(
        Text(tuple(asked[id]["tokens"]), tuple(tokens[:TOKENS]))
        for id, tokens in chosen.items()
        if id in asked and asked[id]["tokens"]
    )
