"""Finds what is damaged in a run directory and moves it aside, so that a resume makes it again.

A step is only as good as what it was made from. So the repair of a step also moves every step that
came after it, and the policies those trained: nothing is ever trained on a mix of old and new data.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from selfkd.errors import DataError, UsageError
from selfkd.files import disk_error, file_sha256, write_atomically
from selfkd.ledger import Ledger, policy_dir
from selfkd.locks import RunLock
from selfkd.retention import is_pruned, leftovers
from selfkd.rundir import STATES, unreadable


class Place(NamedTuple):
    """When a step happened: rounds in order, and steps in order within a round."""

    round: int
    order: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a run directory."""

    path: str
    """Relative to the run."""
    what: str
    harmless: bool = False
    """A leftover of a crash, which a resume copes with by itself."""
    note: bool = False
    """Nothing that is wrong: it is told, and left as it is."""
    place: Place | None = None
    """The step that has to be done again, if any."""
    done: str = ""
    """What the repair did about it."""


def check_run(run_dir: Path, *, repair: bool = False) -> list[Problem]:
    """Check every file of a run against its manifest; to `repair`, move aside what is damaged and
    everything made from it. Raises LockHeld where a repair meets a run in progress."""
    if not (run_dir / "run.yaml").is_file():
        raise UsageError(
            "not a run directory: it has no run.yaml", where=str(run_dir), remedy="see `selfkd ls`"
        )
    with RunLock(run_dir) if repair else contextlib.nullcontext():
        found = list(_inspect(run_dir, repair=repair))
        first = min((p.place for p in found if p.place), default=None)
        if first:
            first, gone = _with_weights(run_dir, first)
            found += gone
            damaged = {p.path for p in found}
            found += [p for p in _descendants(run_dir, first) if p.path not in damaged]
        return _repair(run_dir, found, first) if repair and found else found


# -- looking ------------------------------------------------------------------------------------


def _inspect(run: Path, *, repair: bool) -> Iterator[Problem]:
    for place, path in _steps(run):
        yield from (replace(p, path=f"{_relative(path, run)}/{p.path}") for p in _step(path, place))
    yield from _policies(run, repair=repair)
    yield from _lines(run / "events.jsonl")
    yield from _lines(run / "metrics.jsonl")
    for pattern in (".tmp-*", "policies/.tmp-*", "rounds/*/*/.tmp-*"):
        for path in sorted(run.glob(pattern)):
            yield Problem(_relative(path, run), "left over from an interrupted write", True)


def _steps(run: Path) -> list[tuple[Place, Path]]:
    """Every step directory, in the order in which they happened."""
    found = []
    for path in run.glob("rounds/*/*"):
        match = re.fullmatch(r"(\d+)-.+", path.name)
        if match and path.is_dir() and path.parent.name.isdigit():
            found.append((Place(int(path.parent.name), int(match[1])), path))
    return sorted(found)


def _step(path: Path, place: Place) -> Iterator[Problem]:
    """Problems of one step; their paths are relative to it."""
    if _read(path / "step.json") is None:
        yield Problem("step.json", "missing or not JSON", place=place)
        return
    if (path / STATES).exists() and (reason := _unreadable(path / STATES)):
        yield Problem(STATES, reason)  # a training that wants them asks again
    shards = {p.name for p in path.glob("[0-9]*.parquet")}
    if not (path / "manifest.json").exists():
        for name in sorted(shards):
            if reason := _unreadable(path / name):
                yield Problem(name, reason, place=place)
        return
    recorded = _hashes(path / "manifest.json")
    if recorded is None:
        yield Problem("manifest.json", "not a manifest", place=place)
        return
    for name, sha256 in recorded.items():
        if reason := _mismatch(path / name, sha256):
            yield Problem(name, reason, place=place)
    for name in sorted(shards - recorded.keys()):
        yield Problem(name, "not in the manifest", place=place)


def _policies(run: Path, *, repair: bool) -> Iterator[Problem]:
    """Policies that are not as recorded. A run copied without any weights is whole, unless it is to
    be repaired, which has them trained again."""
    trained = {}
    for place, path in _steps(run):
        if "-train" in path.name and (manifest := _read(path / "manifest.json")):
            name = f"round-{place.round + 1:03d}"
            # A training without signal names the policy it left as it was.
            if manifest.get("summary", {}).get("policy") == f"round-{place.round + 1}":
                trained[name] = place
    present = {path.name for path in run.glob("policies/round-*")}
    if trained and not repair and not list(run.glob("policies/round-*/*.safetensors")):
        what = (
            "this copy has no weights: it can be looked at and exported, not resumed, unless "
            "--repair has them trained again"
        )
        yield Problem("policies", what, note=True)
        return
    for name in sorted(present | trained.keys()):
        for problem in _policy(run / "policies" / name):
            place = None if problem.harmless else trained.get(name)
            yield replace(problem, path=f"policies/{name}{problem.path}", place=place)


def _policy(path: Path) -> Iterator[Problem]:
    if not path.exists():
        yield Problem("", "recorded by its training but missing")
        return
    recorded = _hashes(path / "MANIFEST.json")
    if recorded is None:
        yield Problem("", "MANIFEST.json is missing or not a manifest")
        return
    if is_pruned(path):
        for file in leftovers(path):
            yield Problem(f"/{file.name}", "left over from a policy that was pruned", harmless=True)
        return
    for name, sha256 in recorded.items():
        if reason := _mismatch(path / name, sha256):
            yield Problem("", f"{name}: {reason}")


def _lines(path: Path) -> Iterator[Problem]:
    """Lines that are not JSON objects; an unfinished last one is harmless."""
    if not path.exists():
        return
    data = path.read_bytes()
    lines = data.splitlines()
    torn = bool(data) and not data.endswith(b"\n")
    for number, line in enumerate(lines, 1):
        if torn and number == len(lines):
            yield Problem(path.name, "the last line is unfinished", harmless=True)
        elif not _is_record(line):
            yield Problem(path.name, f"line {number} is not a record")


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _hashes(manifest: Path) -> dict[str, str] | None:
    """File name -> SHA-256 of a step's or a policy's manifest, or None where it is damaged."""
    entries = _read(manifest) or {}
    try:
        if "files" in entries:
            return {name: entry["sha256"] for name, entry in entries["files"].items()}
        return {entry["file"]: entry["sha256"] for entry in entries["shards"]}
    except (KeyError, TypeError, AttributeError):
        return None


def _mismatch(path: Path, sha256: str) -> str:
    if not path.exists():
        return "recorded in the manifest but missing"
    return "" if file_sha256(path) == sha256 else "its content does not match the manifest"


def _unreadable(path: Path) -> str:
    try:
        pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        return unreadable(error)
    return ""


def _relative(path: Path, run: Path) -> str:
    return path.relative_to(run).as_posix()


# -- what hangs on it ---------------------------------------------------------------------------


def _refuse_shared(run: Path, first: Place) -> None:
    """A fork's early rounds were made under its parent's config and cannot be made here."""
    parent = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["run"].get("parent")
    if parent and first.round < parent["round"]:
        raise DataError(
            f"round {first.round} is damaged, and this run shares it with {parent['run']}",
            where=str(run),
            remedy=f"check {parent['run']} with `selfkd doctor`, then fork it again",
        )


def _with_weights(run: Path, first: Place) -> tuple[Place, list[Problem]]:
    """The step to do again first, so that every policy it takes to make the rest is there.

    Weights that were pruned are made anew by their training.
    """
    trainings = {f"round-{p.round + 1}": p for p, path in _steps(run) if "-train" in path.name}
    gone: list[Problem] = []
    while True:
        used = {
            name
            for place, path in _steps(run)
            if place >= first
            for key, name in _arguments(path).items()
            if key in ("policy_name", "start_name", "ref_name")
        }
        earlier = {
            trainings[n]: n
            for n in used & trainings.keys()
            if trainings[n] < first and is_pruned(policy_dir(run, n))
        }
        if not earlier:
            return first, gone
        first = min(earlier)
        what = f"pruned, and needed to make again what was made with it after round {first.round}"
        path = _relative(policy_dir(run, earlier[first]), run)
        gone.append(Problem(path, what, place=first))


def _arguments(step: Path) -> dict[str, Any]:
    args = (_read(step / "step.json") or {}).get("args")
    return args if isinstance(args, dict) else {}


def _descendants(run: Path, first: Place) -> Iterator[Problem]:
    """Whatever was made after the step at `first`: later steps, later rounds, their policies."""
    what = f"made after what is damaged in round {first.round}"
    later = [(place, path) for place, path in _steps(run) if place > first]
    names = {
        _relative(path if place.round == first.round else path.parent, run) for place, path in later
    }
    yield from (Problem(name, what) for name in sorted(names))
    trainings = [p.round for p, path in _steps(run) if p >= first and "-train" in path.name]
    for number in trainings:
        if (run / "policies" / f"round-{number + 1:03d}").exists():
            yield Problem(f"policies/round-{number + 1:03d}", what)


# -- repairing ----------------------------------------------------------------------------------


def _repair(run: Path, found: list[Problem], first: Place | None) -> list[Problem]:
    if first:
        _refuse_shared(run, first)
    aside = run / "quarantine" / time.strftime("%Y%m%dT%H%M%S")
    try:
        repaired = [replace(p, done=_put_right(run, p, aside)) for p in found]
        if first:
            _reopen(run, first, aside)
    except OSError as error:
        raise disk_error(error, run) from error
    moved = sum(p.done.startswith("moved") for p in repaired)
    text = f"repaired: {moved} damaged or dependent parts moved to {_relative(aside, run)}"
    Ledger(run).event("message", text=text, level="warning")
    return repaired


def _reopen(run: Path, first: Place, aside: Path) -> None:
    """Make the first damaged step unfinished: what it lacks is made again, the rest of it stays."""
    path = dict(_steps(run))[first]
    _move(path / "manifest.json", run, aside)
    if not (path / "step.json").exists():
        _move(path, run, aside)
    _move(run / "metrics.jsonl", run, aside)  # written again at the end of the next round


def _put_right(run: Path, problem: Problem, aside: Path) -> str:
    path = run / problem.path
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n") and _is_record(line)]
        aside.mkdir(parents=True, exist_ok=True)
        if not (aside / path.name).exists():
            shutil.copy2(path, aside / path.name)
        write_atomically(path, b"".join(whole))
        return f"dropped; the file as it was is in {_relative(aside, run)}"
    if problem.harmless:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return "removed"
    if _move(path, run, aside):
        return f"moved to {_relative(aside, run)}; a resume makes it again"
    return "a resume makes it again"


def _move(path: Path, run: Path, aside: Path) -> bool:
    """Move a file or directory of the run below `aside`, if it is there."""
    target = aside / path.relative_to(run)
    if not path.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and target.exists():
        shutil.copytree(path, target, dirs_exist_ok=True)  # part of it was moved before
        shutil.rmtree(path)
    else:
        path.rename(target)
    return True
