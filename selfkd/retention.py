"""Which policies of a run stay on disk, and what is left of the others.

A pruned policy keeps its directory, its manifest and a tombstone that says when and why; its
weights are gone. Its name and fingerprint still identify what it made, so the run can be resumed,
read and checked as before. Where weights are needed again, as for a fork in its round, the error
says which training makes them anew.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from selfkd.files import write_json, writing
from selfkd.ledger import Ledger, now
from selfkd.options import Options

TOMBSTONE = "PRUNED.json"
"""{"policy", "time", "reason", "bytes"}, in the directory of a pruned policy."""


class KeepOptions(Options):
    """Which policies stay on disk once a round is over (config section `keep_policies`)."""

    last: int | None = Field(None, ge=1)
    """So many of the newest; default: all. The best on held-out, and what the next round goes on
    from, stay in any case."""
    every: int = Field(0, ge=0)
    """Of the older ones, every so many; 0: none."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return {"last": value} if isinstance(value, int) and not isinstance(value, bool) else value


def is_pruned(path: Path) -> bool:
    """Whether the policy in this directory was pruned."""
    return (path / TOMBSTONE).exists()


def leftovers(path: Path) -> list[Path]:
    """Files of a pruned policy that a crash kept from being removed."""
    recorded = json.loads((path / "MANIFEST.json").read_text())["files"]
    return [path / name for name in recorded if (path / name).exists()]


def surplus(numbers: Collection[int], keep: KeepOptions, needed: Iterable[int]) -> list[int]:
    """Those of the policies' numbers that need not stay, in order."""
    if keep.last is None:
        return []
    stay = {*sorted(numbers)[-keep.last :], *needed}
    stay |= {n for n in numbers if keep.every and n % keep.every == 0}
    return sorted(set(numbers) - stay)


def prune(ledger: Ledger, keep: KeepOptions, needed: Collection[str]) -> list[str]:
    """Remove the weights of what is surplus; the names of the policies pruned now.

    `needed` names what the run stands by or goes on from; what an adapter among the kept is merged
    into is needed too.
    """
    folders = {int(p.name.removeprefix("round-")): p for p in _folders(ledger)}
    for path in folders.values():
        if is_pruned(path):
            _remove(path)  # whatever a crash left
    present = {n: path for n, path in folders.items() if not is_pruned(path)}
    spared = {int(n.removeprefix("round-")) for n in needed if n.startswith("round-")}
    while True:
        found = surplus(present, keep, spared)
        starts = {_start(path) for n, path in present.items() if n not in found}
        if not (more := {n for n in starts if n in found}):
            break
        spared |= more
    for number in found:
        _bury(ledger, f"round-{number}", present[number], keep)
    return [f"round-{number}" for number in found]


def _folders(ledger: Ledger) -> list[Path]:
    found = (ledger.path / "policies").glob("round-*/MANIFEST.json")
    return [p.parent for p in found if p.parent.name.removeprefix("round-").isdigit()]


def _start(path: Path) -> int | None:
    """The number of the policy that the one in `path` is an adapter of, if it is one."""
    if not (path / "adapter_config.json").exists():
        return None
    start = json.loads((path / "MANIFEST.json").read_text()).get("start", "base")
    return None if start == "base" else int(start.removeprefix("round-"))


def _bury(ledger: Ledger, name: str, path: Path, keep: KeepOptions) -> None:
    # The tombstone first: a policy without its files must never look damaged.
    size = sum(file.stat().st_size for file in leftovers(path))
    reason = f"keep_policies: last {keep.last}, every {keep.every}"
    facts: dict[str, Any] = {"policy": name, "reason": reason, "bytes": size}
    write_json(path / TOMBSTONE, {**facts, "time": now()})
    _remove(path)
    ledger.event("policy_pruned", **facts)


def _remove(path: Path) -> None:
    with writing(path):
        for file in leftovers(path):
            file.unlink()
