"""The samples of a round with their verdicts, and why each was kept or dropped."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfkd.errors import UsageError
from selfkd.rundir import (
    APART,
    StepRecord,
    find_rows,
    of_verb,
    round_numbers,
    round_steps,
    run_facts,
)
from selfkd.terminal import one_line, shows_unicode, visible

Row = dict[str, Any]

_SAMPLE = ("id", "prompt_id", "completion", "finish", "tokens", "policy", "view")
PROMPT = ("id", "messages", "answer")
_VERDICT = ("sample_id", "reward", "status", "answer", "rationale")
_DECISION = ("sample_id", "kept", "reason")


# -- reading --------------------------------------------------------------------------------------


def show_samples(
    run_dir: Path, round: int, *, kept: bool | None = None, limit: int = 10, label: str = ""
) -> list[Row]:
    """The first `limit` samples of a round, in the order they were recorded.

    Keys: sample_id, prompt_id, label, prompt, answer, completion, finish, tokens (their number),
    policy, view, reward, status, verdict_answer, rationale, kept, reason; null where nothing is
    recorded. `kept` selects by decision. An empty `label` means all but held-out answers and
    controls, `heldout` or `controls` means those, another label the samples of that step. A round
    that only decides about samples of an earlier one shows those. Raises UsageError for a round or
    label that is not there.
    """
    decided = of_verb(_labelled(run_dir, round, label), "keep")
    source = source_steps(run_dir, round, lambda number: _labelled(run_dir, number, label))
    ids = list(islice(_ids(source, decided, kept), limit))
    samples: dict[str, Row] = {}
    for step in of_verb(source, "generate"):
        found = find_rows([step], _SAMPLE, set(ids) - samples.keys())
        samples |= {i: row | {"label": step.label} for i, row in found.items()}
    prompts = find_rows(
        of_verb(source, "prompts"), PROMPT, {s["prompt_id"] for s in samples.values()}
    )
    verdicts = find_rows(of_verb(source, "judge"), _VERDICT, ids)
    decisions = find_rows(decided, _DECISION, ids)
    return [
        sample_row(
            samples[i],
            prompts.get(samples[i]["prompt_id"], {}),
            verdicts.get(i, {}),
            decisions.get(i, {}),
        )
        for i in ids
        if i in samples
    ]


def _labelled(run_dir: Path, round: int, label: str) -> list[StepRecord]:
    run_facts(run_dir)  # refuses what is not a run
    there = round_numbers(run_dir)
    if round not in there:
        listed = ", ".join(map(str, there)) or "none yet"
        raise UsageError(
            f"there is no round {round}", where=str(run_dir), remedy=f"rounds: {listed}"
        )
    steps = round_steps(run_dir, round)
    labels = sorted({s.label for s in of_verb(steps, "generate") if s.label})
    if label and label not in labels:
        raise UsageError(
            f"round {round} has no samples labelled {label!r}",
            where=str(run_dir),
            remedy=f"labels: {', '.join(labels) or 'none'}",
        )
    return [s for s in steps if (s.label == label if label else s.label not in APART)]


def source_steps(
    run_dir: Path, round: int, steps_at: Callable[[int], list[StepRecord]]
) -> list[StepRecord]:
    """The steps that hold the samples, `steps_at` this round or the last one that sampled."""
    for number in reversed([n for n in round_numbers(run_dir) if n <= round]):
        steps = steps_at(number)
        if of_verb(steps, "generate") or not of_verb(steps, "keep"):
            return steps
    return []


def _ids(
    source: Iterable[StepRecord], decided: Iterable[StepRecord], kept: bool | None
) -> Iterator[str]:
    if kept is None:
        for step in of_verb(source, "generate"):
            for table in step.tables(["id"]):
                yield from table.column("id").to_pylist()
        return
    for step in decided:
        for table in step.tables(["sample_id", "kept"]):
            chosen = table.filter(pc.field("kept") == kept)
            yield from chosen.column("sample_id").to_pylist()


def sample_row(sample: Row, prompt: Row, verdict: Row, decision: Row) -> Row:
    """What is known of one sample, by the keys of `show_samples`."""
    return {
        "sample_id": sample["id"],
        "prompt_id": sample["prompt_id"],
        "label": sample["label"],
        "prompt": prompt_text(prompt),
        "answer": prompt.get("answer"),
        "completion": sample["completion"],
        "finish": sample["finish"],
        "tokens": len(sample["tokens"]),
        "policy": sample["policy"],
        "view": sample["view"],
        "reward": verdict.get("reward"),
        "status": verdict.get("status"),
        "verdict_answer": verdict.get("answer"),
        "rationale": verdict.get("rationale"),
        "kept": decision.get("kept"),
        "reason": decision.get("reason"),
    }


def prompt_text(prompt: Row) -> str | None:
    """A lone message as it is, several with the role before each."""
    if not prompt:
        return None
    messages = json.loads(prompt["messages"])
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"[{m['role']}] {m['content']}" for m in messages)


# -- printing -------------------------------------------------------------------------------------


def render_samples(
    rows: Sequence[Row], *, width: int | None = None, color: bool | None = None
) -> str:
    """Samples as text for a terminal, wrapped to `width` columns (default: the terminal's).

    What the model wrote is data: markup in it is shown, and whatever could act on the terminal is
    written out. `color` defaults to whether stdout is a terminal.
    """
    if not rows:
        return "no such samples"
    console = Console(
        width=width or shutil.get_terminal_size().columns,
        force_terminal=bool(sys.stdout and sys.stdout.isatty()) if color is None else color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        for row in rows:
            console.print(_sample_title(row), _sample_fields(row), "")
    text = "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))
    encoding = "utf-8" if shows_unicode(sys.stdout) else "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _sample_title(row: Row) -> Text:
    title = Text(one_line(row["sample_id"]), style="bold")
    facts = [row["policy"], row["view"], f"{row['tokens']} tokens", row["finish"], row["label"]]
    title.append("  " + "  ".join(one_line(str(f)) for f in facts if f), style="dim not bold")
    return title


def _sample_fields(row: Row) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    judged = "green" if (row["reward"] or 0) > 0 else "yellow"
    decided = (
        None if row["kept"] is None else "kept" if row["kept"] else f"dropped: {row['reason']}"
    )
    for name, value, style in (
        ("prompt", row["prompt"], ""),
        ("expected", row["answer"], ""),
        ("wrote", row["completion"], "cyan"),
        ("verdict", _verdict_text(row), judged),
        ("because", row["rationale"], ""),
        ("decision", decided, "green" if row["kept"] else "yellow"),
    ):
        if value:
            grid.add_row(name, Text(visible(value), style=style))
    return grid


def _verdict_text(row: Row) -> str:
    if row["status"] is None:
        return "not judged"
    said = f"no reward ({row['status']})" if row["reward"] is None else f"reward {row['reward']:g}"
    return f"{said}, read {row['verdict_answer']!r}" if row["verdict_answer"] is not None else said
