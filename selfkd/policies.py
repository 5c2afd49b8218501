"""The versions of the model: the base, and one committed directory per round that trained."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.errors import DataError, UsageError
from selfkd.files import file_sha256, make_directory, sync_directory, write_json, writing
from selfkd.ledger import Ledger, broken, policy_dir
from selfkd.records import content_hash
from selfkd.retention import is_pruned

Canary = list[tuple[list[int], list[float]]]

STATE = "trainer.state"
"""What a training that goes on needs, in the directory of a policy passed on the way; safetensors
inside, but no engine loads it as weights by this name."""
PROBE = "probe.state"
"""What a policy says of the run's fixed texts (`training/probe.py`), in its directory; likewise."""
Merge = Callable[[Path, Path, Path], None]
"""`merge(adapter, start, out)` writes the model that an adapter makes of its start to `out`."""

CARD = "README.md"
"""The model card in a policy's directory: written after the policy, and again as figures come."""

MERGED = 3
"""Models merged from adapters that stay on disk: the start, the newest and the best."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A version of the model: where its weights are and what identifies them."""

    name: str
    folder: Path
    fingerprint: str
    canary: Canary
    """Fixed token sequences with their log-probabilities as the trainer computed them."""
    pruned: bool = False
    """Whether its weights were let go; it still identifies what it made."""

    @property
    def path(self) -> Path:
        """HF model directory; of a policy stored as an adapter, the model merged from it.

        Raises UsageError where its weights were let go (`keep_policies`, or a policy passed on the
        way to a round's).
        """
        if self.pruned:
            made = int(self.name.removeprefix("round-").partition("+")[0]) - 1
            run = self.folder.parents[1]
            raise UsageError(
                f"the weights of {self.name} were let go, and they are needed",
                where=str(self.folder),
                remedy=f"run `selfkd fork {run} --round {made}`, which trains it again",
            )
        return self.folder


class Policies:
    """The base model and the policies of one run."""

    def __init__(self, ledger: Ledger, base_path: Path, merge: Merge | None = None) -> None:
        """`merge` is needed where a policy is an adapter whose whole model is gone."""
        self._ledger = ledger
        self._merge = merge
        self._base_path = base_path
        self._verified: dict[str, Policy] = {}
        self._passing: dict[str, str] = {}
        """Fingerprints of policies on the way to one of a round."""

    def get(self, name: str) -> Policy:
        """A policy by name, its files checked against its manifest once in this process.

        Of one that was passed on the way to a round's policy nothing but the name is left once the
        round has trained.
        """
        if name in self._passing and not (path := self._ledger.policy_dir(name)).exists():
            return Policy(name, path, self._passing[name], [], pruned=True)
        if name not in self._verified or not self._verified[name].folder.exists():
            self._verified[name] = self._load(name)
        return self._verified[name]

    def add(self, name: str, path: Path) -> None:
        """Make a model that this run did not train one of its policies, to teach or to sample."""
        self._verified[name] = Policy(name, path, model_fingerprint(path), [])

    def passing(self, name: str, fingerprint: str) -> None:
        """Note a policy that is passed on the way to a round's."""
        self._passing[name] = fingerprint

    def let_go(self, name: str) -> None:
        """Remove the weights of what was passed on the way to the policy `name`."""
        for path in self._ledger.policy_dir(name).parent.glob(f"{_folder(name)}+*"):
            shutil.rmtree(path)

    def adopt(self, passed: str, name: str, fingerprint: str) -> None:
        """Make what was reached the round's policy `name`: there was no more to learn."""
        source = self._ledger.policy_dir(passed)
        manifest = json.loads((source / "MANIFEST.json").read_text())
        staged = self.staging(name)
        for file in manifest["files"]:
            if file != STATE:
                shutil.copy2(source / file, staged / file)
        canary, start = manifest["canary"], manifest["start"]
        self.commit(name, fingerprint, manifest["report"], canary, start, manifest["steps"])

    def age(self, writer: str, reader: str) -> int | None:
        """Optimiser steps from the policy `writer` to `reader`, or None where none lead there."""
        total = 0
        while True:
            number, _, steps = writer.partition("+")
            if writer == reader:
                return total
            if reader == "base" or not reader.startswith("round-"):
                return None
            here, start = self._made(reader)
            if steps and reader.partition("+")[0] == number:
                return total + here - int(steps)
            total, reader = total + here, start

    def _made(self, name: str) -> tuple[int, str]:
        """Optimiser steps of a policy since its start, and that start."""
        manifest = json.loads((self._ledger.policy_dir(name) / "MANIFEST.json").read_text())
        steps = manifest.get("steps", manifest["report"].get("steps")) or 0
        return steps, manifest.get("start", "base")

    def forget(self, name: str) -> None:
        """Look at the policy's directory again when it is next asked for."""
        self._verified.pop(name, None)

    def staging(self, name: str) -> Path:
        """An empty directory for a policy in the making."""
        return _emptied(self._ledger.path / "policies" / f".tmp-{name}")

    def staging_merged(self, name: str) -> Path:
        """An empty directory for the whole model, where a policy is stored as an adapter."""
        return _emptied(self._ledger.path / "policies" / ".merged" / f".tmp-{name}")

    def committed(self, name: str, fingerprint: str) -> dict[str, Any] | None:
        """The report of an already committed training with this fingerprint, if there is one.

        A crash between the commit of a policy and the end of its step leaves this behind.
        """
        manifest = self._ledger.policy_dir(name) / "MANIFEST.json"
        if not manifest.exists() or is_pruned(manifest.parent):
            return None
        recorded = json.loads(manifest.read_text())
        return recorded["report"] if recorded["fingerprint"] == fingerprint else None

    def commit(
        self,
        name: str,
        fingerprint: str,
        report: dict[str, Any],
        canary: Canary,
        start: str = "base",
        steps: int | None = None,
    ) -> Policy:
        """Make the staged policy durable and visible, in one rename.

        `start` is the policy that it was trained from; an adapter is merged into that one. `steps`
        are the optimiser steps since then, where the report has but the last of them.
        """
        staged = self._ledger.path / "policies" / f".tmp-{name}"
        files = sorted(p for p in staged.iterdir() if p.is_file() and p.name != CARD)
        # The disk writes while a core reads.
        with ThreadPoolExecutor() as others, writing(staged, sum(f.stat().st_size for f in files)):
            hashes = others.map(file_sha256, files)
            for file in files:
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            entries = {
                file.name: {"bytes": file.stat().st_size, "sha256": sha256}
                for file, sha256 in zip(files, hashes, strict=True)
            }
        manifest = {
            "policy": name,
            "start": start,
            "steps": report.get("steps", 0) if steps is None else steps,
            "fingerprint": fingerprint,
            "files": entries,
            "report": report,
            "canary": canary,
        }
        write_json(staged / "MANIFEST.json", manifest)
        final = self._ledger.policy_dir(name)
        merged = final.parent / ".merged" / name
        with writing(final):
            for old in (merged, final):
                shutil.rmtree(old, ignore_errors=True)
            staged.rename(final)
            sync_directory(final.parent)
            if (whole := merged.with_name(f".tmp-{name}")).exists():
                whole.rename(merged)
        self._verified[name] = Policy(name, self._whole(final, name, start), fingerprint, canary)
        return self._verified[name]

    def _whole(self, path: Path, name: str, start: str) -> Path:
        """The model directory of a policy: its own, or one merged from its adapter.

        Merged models are copies: only the last `MERGED` are left on disk.
        """
        if not (path / "adapter_config.json").exists():
            return path
        merged = path.parent / ".merged" / name
        if not merged.exists():
            assert self._merge, f"{name} is an adapter and nobody merges it"
            self._merge(path, self.get(start).path, merged)
        os.utime(merged)
        models = [p for p in merged.parent.iterdir() if not p.name.startswith(".")]
        for old in sorted(models, key=lambda p: -p.stat().st_mtime)[MERGED:]:
            shutil.rmtree(old)
        return merged

    def _load(self, name: str) -> Policy:
        if name == "base":
            return Policy(name, self._base_path, model_fingerprint(self._base_path), [])
        path = self._ledger.policy_dir(name)
        manifest_path = path / "MANIFEST.json"
        if not manifest_path.exists():
            raise broken(manifest_path, f"policy {name} is missing")
        manifest = json.loads(manifest_path.read_text())
        if is_pruned(path):
            return Policy(name, path, manifest["fingerprint"], [], pruned=True)
        for file, entry in manifest["files"].items():
            if not (path / file).exists():
                raise broken(path / file, "recorded in the manifest but missing")
            if file_sha256(path / file) != entry["sha256"]:
                raise broken(path / file, "its content does not match the manifest")
        whole = self._whole(path, name, manifest.get("start", "base"))
        return Policy(name, whole, manifest["fingerprint"], manifest["canary"])


def _folder(name: str) -> str:
    return policy_dir(Path(), name).name


def _emptied(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    make_directory(path)
    return path


def model_fingerprint(path: Path) -> str:
    """Identity of a model directory, cheap even for large models: config, sizes, and 64 blocks
    spread over each weight file."""
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise DataError("no safetensors weights", where=str(path), remedy="name a HF model folder")
    config = (path / "config.json").read_text()
    return content_hash([config, *([w.name, w.stat().st_size, _spread(w)] for w in weights)])


def _spread(path: Path, blocks: int = 64, size: int = 4096) -> str:
    length = path.stat().st_size
    with path.open("rb") as file:
        parts = []
        for i in range(blocks):
            file.seek(i * max(0, length - size) // max(1, blocks - 1))
            parts.append(file.read(size).hex())
    return content_hash(parts)
