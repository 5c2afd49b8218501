"""The run directory: durable steps made of Parquet shards, manifests, fingerprints and events.

A shard is written under a temporary name, fsynced and renamed, so a file that is there is whole.
A step directory with a `manifest.json` is finished; one without continues at its first missing
shard. `step.json` holds the fingerprint of what the step was asked to do.
"""

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfkd.errors import DataError, UsageError
from selfkd.files import (
    disk_error,
    file_sha256,
    make_directory,
    share,
    write_atomically,
    write_json,
)
from selfkd.records import content_hash

TAKEN_OVER = ("prompts", "generate", "judge")
"""Verbs whose steps a fork may take over from its parent."""


def now() -> str:
    """UTC time, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(slots=True)
class Step:
    """One call of a verb: its directory, its recorded arguments and its shards."""

    path: Path
    round: int
    verb: str
    label: str
    fingerprint: str
    manifest: dict[str, Any] | None = None
    started: float = field(default_factory=time.monotonic)
    _hashes: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`verb` or `verb-label`, as people call it."""
        return f"{self.verb}-{self.label}" if self.label else self.verb

    @property
    def finished(self) -> bool:
        """Whether the step's manifest is recorded."""
        return self.manifest is not None

    @property
    def summary(self) -> dict[str, Any]:
        """The summary recorded at the end of the step."""
        assert self.manifest is not None, f"{self.path} is not finished"
        return self.manifest["summary"]

    def shard_path(self, index: int) -> Path:
        """Where shard `index` is."""
        return self.path / f"{index:05d}.parquet"

    def has(self, index: int) -> bool:
        """Whether shard `index` is recorded."""
        return self.shard_path(index).exists()

    def write(self, index: int, table: pa.Table) -> None:
        """Commit one shard; what one held that was there stays beside it, as `00000.parquet.1`."""
        path = self.shard_path(index)
        sink = pa.BufferOutputStream()
        # No manifest vouches for the shard before its step is done: its pages do.
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue().to_pybytes()
        if path.exists():
            _set_aside(path, data)
        write_atomically(path, data)
        self._hashes[index] = {
            "file": path.name,
            "rows": table.num_rows,
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard back, or some columns of it."""
        path = self.shard_path(index)
        try:
            names = list(columns) if columns else None
            return pq.read_table(path, columns=names, page_checksum_verification=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise broken(path, str(error)) from error

    def shards(self) -> list[int]:
        """Indices of the recorded shards, in order."""
        return sorted(int(p.stem) for p in self.path.glob("[0-9]*.parquet"))

    def tables(self) -> Iterator[pa.Table]:
        """Every recorded shard, in order."""
        return (self.read(i) for i in self.shards())

    def finish(self, summary: Mapping[str, Any], *, seconds: float | None = None) -> None:
        """Record that every shard is there; `seconds` defaults to the time since the step began."""
        self.manifest = {
            "verb": self.verb,
            "label": self.label,
            "fingerprint": self.fingerprint,
            "shards": [self._shard_entry(i) for i in self.shards()],
            "seconds": time.monotonic() - self.started if seconds is None else seconds,
            "summary": dict(summary),
            "finished": now(),
        }
        write_json(self.path / "manifest.json", self.manifest)

    def _shard_entry(self, index: int) -> dict[str, Any]:
        if index not in self._hashes:
            path = self.shard_path(index)
            rows = pq.read_metadata(path).num_rows
            self._hashes[index] = {"file": path.name, "rows": rows, "sha256": file_sha256(path)}
        return self._hashes[index]

    def verify(self) -> None:
        """Check every shard against the manifest; a damaged step is never used."""
        assert self.manifest is not None
        for shard in self.manifest["shards"]:
            path = self.path / shard["file"]
            if not path.exists():
                raise broken(path, "recorded in the manifest but missing")
            if file_sha256(path) != shard["sha256"]:
                raise broken(path, "its content does not match the manifest")


def _set_aside(path: Path, data: bytes) -> None:
    """Keep what `data` is to replace under the next number, a name that no reader takes for a
    shard."""
    former = path.read_bytes()
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    # It may be there already: of a start that was killed before it wrote anew.
    kept = next(p for p in names if not p.exists() or p.read_bytes() == former)
    if former != data and not kept.exists():
        write_atomically(kept, former)


def broken(path: Path, reason: str) -> DataError:
    """The error for a damaged file of a run."""
    run = next((p for p in path.parents if (p / "run.yaml").exists()), path.parent)
    return DataError(
        reason, where=str(path), remedy=f"run `selfkd doctor {run} --repair`, then resume"
    )


MARKER = "round"
"""Verb of the empty step that ends a round."""


class Ledger:
    """The steps, policies and events of one run directory."""

    def __init__(self, path: Path, *, inherited: int = -1, offered: Path | None = None) -> None:
        self.path = path
        self.inherited = inherited
        """Rounds up to this one came from a parent run and are taken as they are."""
        self.offered = offered
        """A run whose prompts, samples and verdicts are taken over where their steps are the same
        (same fingerprint), instead of being made again."""
        self._orders: dict[int, int] = {}
        self._seq = self._repair_events()

    def round_dir(self, round: int) -> Path:
        """Directory of one round."""
        return self.path / "rounds" / f"{round:03d}"

    def policy_dir(self, policy: str) -> Path:
        """Directory of one trained policy."""
        return policy_dir(self.path, policy)

    def step(self, round: int, verb: str, label: str, args: Mapping[str, Any]) -> Step:
        """Open the next step of a round: new, unfinished or finished.

        `args` are plain values that say everything the step depends on, fingerprints of its
        inputs included. A recorded step with other args is a UsageError that says what differs.
        """
        order = self._orders.get(round, 0) + 1
        self._orders[round] = order
        name = f"{order:02d}-{verb}" + (f"-{label}" if label else "")
        path = self.round_dir(round) / name
        args = json.loads(json.dumps(args, default=str))
        fingerprint = content_hash([verb, label, args])
        record = path / "step.json"
        if record.exists():
            recorded = json.loads(record.read_text())
            if recorded["fingerprint"] != fingerprint:
                if round > self.inherited:
                    raise self._changed(path, round, recorded["args"], args)
                fingerprint = recorded["fingerprint"]
        else:
            self._refuse_other_order(round, order, name)
            self._take_over(path, verb, label, fingerprint)
        if not record.exists():
            make_directory(path)
            write_json(
                record,
                {
                    "round": round,
                    "order": order,
                    "verb": verb,
                    "label": label,
                    "fingerprint": fingerprint,
                    "args": args,
                    "started": now(),
                },
            )
        step = Step(path, round, verb, label, fingerprint)
        manifest = path / "manifest.json"
        if manifest.exists():
            step.manifest = json.loads(manifest.read_text())
            step.verify()
        for leftover in path.glob(".tmp-*"):
            leftover.unlink()
        return step

    def _take_over(self, path: Path, verb: str, label: str, fingerprint: str) -> None:
        """Share the step from the run that offers it, if it has the same one, finished."""
        if self.offered is None or verb not in TAKEN_OVER:
            return
        round = self.offered / "rounds" / path.parent.name
        for step in round.glob(f"*-{verb}-{label}" if label else f"*-{verb}"):
            record = step / "step.json"
            if not (step / "manifest.json").exists() or not record.exists():
                continue
            if json.loads(record.read_text())["fingerprint"] == fingerprint:
                staged = path.with_name(f".tmp-{path.name}")
                shutil.rmtree(staged, ignore_errors=True)
                share(step, staged)
                staged.rename(path)
                return

    def _refuse_other_order(self, round: int, order: int, name: str) -> None:
        # A crash right after the directory was made leaves it empty, under this very name.
        others = [p.name for p in self.round_dir(round).glob(f"{order:02d}-*") if p.name != name]
        if others == [f"{order:02d}-{MARKER}"]:
            # The run ended in this round, and now has more rounds to go: the mark comes later.
            shutil.rmtree(self.round_dir(round) / others[0])
        elif others:
            raise UsageError(
                f"round {round} recorded step {others[0]}, but the loop now asks for {name}",
                where=str(self.round_dir(round)),
                remedy=f"run `selfkd fork {self.path} --round {round}` to start a changed run",
            )

    def _changed(
        self, path: Path, round: int, old: Mapping[str, Any], new: Mapping[str, Any]
    ) -> UsageError:
        keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        changes = "; ".join(f"{k}: {_short(old.get(k))} -> {_short(new.get(k))}" for k in keys)
        return UsageError(
            f"this step was recorded with other inputs ({changes})",
            where=str(path),
            remedy=f"run `selfkd fork {self.path} --round {round}` to start a changed run",
        )

    def _repair_events(self) -> int:
        """Drop a torn last line (a crash while appending) and return the last sequence number."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return 0
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            data = data[: data.rfind(b"\n") + 1]
            write_atomically(path, data)
        lines = data.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except ValueError as error:
                raise broken(path, f"line {number} is not JSON ({error})") from error
        return json.loads(lines[-1])["seq"] if lines else 0

    def event(self, name: str, /, **fields: Any) -> dict[str, Any]:
        """Append one event."""
        self._seq += 1
        row = {"seq": self._seq, "time": now(), "event": name, **fields}
        path = self.path / "events.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, default=str) + "\n")
        except OSError as error:
            raise disk_error(error, path) from error
        return row


def policy_dir(run: Path, policy: str) -> Path:
    """Where a run keeps the policy `round-N`, or `round-N+STEPS` on the way to it."""
    number, plus, steps = policy.removeprefix("round-").partition("+")
    return run / "policies" / f"round-{int(number):03d}{plus}{steps}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
