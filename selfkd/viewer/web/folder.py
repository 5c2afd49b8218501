"""The folder of runs that a page shows, and what it tells about one of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.errors import DataError, UsageError
from selfkd.metrics import recorded_rows, run_alarms
from selfkd.rundir import read_lines
from selfkd.viewer.browse import sample_rounds
from selfkd.viewer.lineage import policies
from selfkd.viewer.listing import list_runs
from selfkd.viewer.status import run_now

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of runs; with `only`, one run of it."""

    path: Path
    only: str = ""

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """A folder of runs, or a single run. Raises UsageError where there is neither."""
        if not path.is_dir():
            raise UsageError("no such folder", where=str(path), remedy="name a folder of runs")
        path = path.resolve()
        return cls(path.parent, path.name) if (path / "run.yaml").is_file() else cls(path)

    def run(self, name: str) -> Path:
        """The directory of a run. Raises UsageError for anything but a run of this folder."""
        path = self.path / name
        plain = re.fullmatch(r"[^/\\\0]{1,255}", name) and not name.startswith(".")
        if not plain or (self.only and name != self.only) or not (path / "run.yaml").is_file():
            raise UsageError("no such run here; it may have been moved or deleted")
        if not self._holds(path):
            raise UsageError("this run lies outside of the folder; serve the folder that it is in")
        return path

    def _holds(self, path: Path) -> bool:
        """Whether a run is really here and not a link to elsewhere."""
        return path.resolve().parent == self.path.resolve()

    def listing(self) -> list[Row]:
        """`list_runs`, newest first, with `rewards`, `heldout` (by round) and `alarms` (names)."""
        rows = [r for r in list_runs(self.path) if not self.only or r["run"] == self.only]
        here = [row for row in reversed(rows) if self._holds(Path(row["path"]))]
        return [row | _glance(Path(row["path"])) for row in here]


def _glance(run_dir: Path) -> Row:
    try:
        rounds = read_lines(run_dir / "metrics.jsonl")
    except DataError:
        rounds = []
    try:
        found = run_alarms(run_dir, rounds)
    except (DataError, KeyError):  # damaged, or written by a version with other figures
        found = []
    return {
        "rewards": [r.get("reward_mean") for r in rounds],
        "heldout": [r.get("heldout_reward") for r in rounds],
        "alarms": sorted({a.name for a in found}),
        "critical": any(a.level == "critical" for a in found),
    }


def run_document(run_dir: Path) -> Row:
    """All that a run's page shows but its samples and shapes.

    What `run_now` says, the `rounds` of `selfkd curves --json`, `policies`, and `labels` ({round:
    labels of its samples}).
    """
    rounds = recorded_rows(run_dir)
    return {
        **run_now(run_dir, rounds),
        "rounds": rounds,
        "policies": policies(run_dir),
        "labels": sample_rounds(run_dir),
    }
