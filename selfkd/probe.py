"""The few fixed texts on which a run measures how far its policies have moved."""

from pathlib import Path

from selfkd.rundir import HELDOUT, of_verb, read_columns, round_steps
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
        prompts = [p for s in of_verb(own, "prompts") for p in s.shards()]
        answers = [p for s in of_verb(own, "generate") for p in s.shards()]
        if found := _texts(prompts, answers):
            return found
    return ()


def _texts(prompts: list[Path], answers: list[Path]) -> tuple[Text, ...]:
    chosen: dict[str, list[int]] = {}
    for path in answers:
        for row in read_columns(path, ["prompt_id", "tokens"]).to_pylist():
            if row["tokens"]:
                chosen.setdefault(row["prompt_id"], row["tokens"])
            if len(chosen) == TEXTS:
                break
        if len(chosen) == TEXTS:
            break
    asked: dict[str, list[int]] = {}
    for path in prompts:
        rows = read_columns(path, ["id", "tokens"]).to_pylist()
        asked |= {row["id"]: row["tokens"] for row in rows if row["id"] in chosen}
    return tuple(
        Text(tuple(asked[id]), tuple(tokens[:TOKENS]))
        for id, tokens in chosen.items()
        if asked.get(id)
    )
