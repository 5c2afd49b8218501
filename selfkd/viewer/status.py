"""What a run does now, in a few lines; again and again while it goes on."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

from selfkd.metrics import recorded_rows, run_alarms
from selfkd.rundir import read_lines, run_facts
from selfkd.terminal import SafeStream, one_line
from selfkd.viewer.live import current_step, stamp

Row = dict[str, Any]

WAIT = 1.0
"""Seconds between two looks at a run."""


def run_status(run_dir: Path) -> Row:
    """What `run_now` says, and `round`: the newest row, or null."""
    rows = recorded_rows(run_dir)
    return run_now(run_dir, rows) | {"round": rows[-1] if rows else None}


def run_now(run_dir: Path, rows: list[Row]) -> Row:
    """The facts of `curves --json`, `current`, `ending` and `alarms`; `rows` are the run's rounds.

    `current` is the step in progress of a run that goes on: round, verb, label, done, total, since.
    """
    facts = run_facts(run_dir)
    keys = ("round", "name", "level", "message")
    return {
        **facts,
        "current": current_step(run_dir) if facts["state"] == "running" else None,
        "ending": ending(run_dir),
        "alarms": [{k: getattr(a, k) for k in keys} for a in run_alarms(run_dir, rows)],
    }


def ending(run_dir: Path) -> str:
    """Why the run ended, if it says; empty while it goes on."""
    last = next(reversed(read_lines(run_dir / "events.jsonl")), {})
    if last.get("event") not in ("run_finished", "stopped", "run_failed"):
        return ""
    return str(last.get("reason") or last.get("error") or last.get("message") or "")


def render_status(found: Row) -> str:
    """A run's status as text of a few lines."""
    name, state = one_line(found["run"]), found["state"]
    lines = [f"{name}: {state}, {found['loop']} on {found['model']}, judged by {found['judge']}"]
    row, step = found["round"], found["current"]
    if row:
        planned = f" of {found['planned_rounds']}" if found["planned_rounds"] else ""
        figures = [
            f"{title} {row[key]:.3f}"
            for key, title in (("reward_mean", "reward"), ("heldout_reward", "held-out"))
            if row[key] is not None
        ]
        lines.append(f"  round {row['round']}{planned}" + "".join(f", {f}" for f in figures))
    if step:
        label = f" ({step['label']})" if step["label"] else ""
        total = f" of {step['total']}" if step["total"] else ""
        lines.append(f"  now: {step['verb']}{label} {step['done']}{total}")
    if found["ending"]:
        lines.append(f"  ended: {one_line(found['ending'])}")
    lines += [
        f"  {a['level']}: round {a['round']}: {one_line(a['message'])}" for a in found["alarms"]
    ]
    return "\n".join(lines)


def watch_status(run_dir: Path, *, as_json: bool = False) -> None:
    """Show the status, and again whenever it changed, until the run no longer goes on.

    On a terminal in place, elsewhere one after the other.
    """
    in_place = sys.stdout.isatty() and not as_json
    with _Screen() if in_place else contextlib.nullcontext(_Lines(as_json)) as place:
        seen = ""
        while True:
            mark = stamp(run_dir)
            if mark != seen:
                found = run_status(run_dir)
                place.show(found)
                if found["state"] != "running":
                    return
                seen = mark
            try:
                time.sleep(WAIT)
            except KeyboardInterrupt:
                sys.exit(0)


class _Lines:
    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, found: Row) -> None:
        print(json.dumps(found) if self._as_json else render_status(found), flush=True)


class _Screen:
    """The last status alone, drawn over the one before."""

    def __enter__(self) -> "_Screen":
        from rich.console import Console
        from rich.live import Live

        console = Console(file=cast("IO[str]", SafeStream(sys.stdout)), highlight=False)
        self._live = Live(console=console, auto_refresh=False).__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._live.stop()

    def show(self, found: Row) -> None:
        from rich.text import Text

        self._live.update(Text(render_status(found)), refresh=True)
