"""Opening prompts in tests, from files written on the spot."""

import json
from pathlib import Path
from typing import Any

from selfkd.prompts import PromptOptions, PromptSource, open_prompts
from selfkd.records import Prompt


def opened(source: Any, base: Path = Path(), *, seed: int = 0, **options: Any) -> PromptSource:
    """Prompts of `source`, a string or a mapping of options, with more options."""
    value = {"source": source, **options} if isinstance(source, str) else {**source, **options}
    parsed = PromptOptions.model_validate(value)
    return open_prompts(parsed, seed=seed, base=base)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(path: Path, count: int, first: int = 0) -> Path:
    """Prompts `q0`, `q1`, ... with the answers `0`, `1`, ..."""
    rows = [{"prompt": f"q{i}", "answer": str(i)} for i in range(first, first + count)]
    return write_jsonl(path, rows)


def texts(prompts: list[Prompt]) -> list[str]:
    """The question of each prompt."""
    return [p.text for p in prompts]
