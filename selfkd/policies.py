"""The versions of the model: the base, and one committed directory per round that trained."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.errors import DataError, UsageError
from selfkd.ledger import (
    Ledger,
    broken,
    file_sha256,
    make_directory,
    sync_directory,
    write_json,
    writing,
)
from selfkd.records import content_hash
from selfkd.retention import is_pruned

Canary = list[tuple[list[int], list[float]]]

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

        Raises UsageError where the policy was pruned.
        """
        if self.pruned:
            made = int(self.name.removeprefix("round-")) - 1
            run = self.folder.parents[1]
            raise UsageError(
                f"{self.name} was pruned (keep_policies), and its weights are needed",
                where=str(self.folder),
                remedy=f"run `selfkd fork {run} --round {made}`, which trains it again",
            )
        return self.folder


class Policies:
    """The base model and the policies of one run."""

    def __init__(self, ledger: Ledger, base_path: Path) -> None:
        self._ledger = ledger
        self.base = Policy("base", base_path, model_fingerprint(base_path), [])
        self._verified: dict[str, Policy] = {"base": self.base}

    def get(self, name: str) -> Policy:
        """A policy by name, its files checked against its manifest once in this process."""
        if name not in self._verified or not self._verified[name].folder.exists():
            self._verified[name] = self._load(name)
        return self._verified[name]

    def forget(self, name: str) -> None:
        """Look at the policy's directory again when it is next asked for."""
        self._verified.pop(name, None)

    def staging(self, name: str) -> Path:
        """An empty directory for a policy in the making."""
        path = self._ledger.path / "policies" / f".tmp-{name}"
        shutil.rmtree(path, ignore_errors=True)
        make_directory(path)
        return path

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
    ) -> Policy:
        """Make the staged policy durable and visible, in one rename.

        `start` is the policy that it was trained from; an adapter is merged into that one.
        """
        staged = self._ledger.path / "policies" / f".tmp-{name}"
        files = sorted(p for p in staged.iterdir() if p.is_file())
        with writing(staged, sum(f.stat().st_size for f in files)):
            for file in files:
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        manifest = {
            "policy": name,
            "start": start,
            "fingerprint": fingerprint,
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files},
            "report": report,
            "canary": canary,
        }
        write_json(staged / "MANIFEST.json", manifest)
        final = self._ledger.policy_dir(name)
        with writing(final):
            shutil.rmtree(final, ignore_errors=True)
            staged.rename(final)
            sync_directory(final.parent)
        self._verified[name] = Policy(name, self._whole(final, name, start), fingerprint, canary)
        return self._verified[name]

    def _whole(self, path: Path, name: str, start: str) -> Path:
        """The model directory of a policy: its own, or one merged from its adapter.

        Merged models are copies: only the last `MERGED` are left on disk.
        """
        if not (path / "adapter_config.json").exists():
            return path
        from selfkd.training.adapters import merge

        folder = path.parent / ".merged"
        merged = folder / name
        if not merged.exists():
            merge(path, self.get(start).path, merged)
        os.utime(merged)
        for old in sorted(folder.iterdir(), key=lambda p: -p.stat().st_mtime)[MERGED:]:
            shutil.rmtree(old)
        return merged

    def _load(self, name: str) -> Policy:
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
