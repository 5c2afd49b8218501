"""Puts one policy of a run on a model hub: its files as they are, and a fresh model card."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.files import file_sha256
from selfkd.ledger import broken, policy_dir
from selfkd.modelcard import base_name, is_adapter, model_card, training_of
from selfkd.policies import CARD, PROBE
from selfkd.rundir import read_config, read_json, read_lines

OURS = {"MANIFEST.json", "merge.json", PROBE, CARD}
"""Not pushed as they lie there: the first three serve the run, and the card is made anew."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What is pushed: a policy, where to, and its files, each a path or its bytes."""

    policy: str
    repo: str
    files: dict[str, Path | bytes]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(
            len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.files.values()
        )


def prepare(run_dir: Path, repo: str, number: int | None = None) -> Upload:
    """The upload of policy `round-N`, by default of the one that the run stands by.

    Raises UsageError where there is no such policy or REPO is no OWNER/NAME, DataError where its
    files are not as recorded.
    """
    owner, slash, name = repo.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise UsageError(f"{repo!r} names no repository", remedy="write OWNER/NAME")
    number = _standing(run_dir) if number is None else number
    made = training_of(run_dir, number)
    folder = policy_dir(run_dir, f"round-{number}")
    if not folder.is_dir():
        raise UsageError(
            f"the weights of round-{number} are not here",
            where=str(folder),
            remedy="push from the machine that has them, or copy the folder here",
        )
    files: dict[str, Path | bytes] = {"README.md": model_card(run_dir, number).encode()}
    files |= dict(_checked(folder))
    if is_adapter(made):
        files["adapter_config.json"] = _adapter_config(run_dir, folder, made.summary.get("start"))
    return Upload(f"round-{number}", repo, files)


def _standing(run_dir: Path) -> int:
    """The policy that a finished run stands by, or the newest one of another."""
    ends = [e for e in read_lines(run_dir / "events.jsonl") if e.get("event") == "run_finished"]
    best = str(ends[-1].get("best", "")) if ends else ""
    if best == "base":
        raise UsageError(
            "this run found nothing better than its base",
            where=str(run_dir),
            remedy="name a policy with --round N to push it all the same",
        )
    if best:
        return int(best.removeprefix("round-"))
    trained = [int(p.name.removeprefix("round-")) for p in run_dir.glob("policies/round-*")]
    return max(trained, default=0)


def _checked(folder: Path) -> Iterator[tuple[str, Path]]:
    """The recorded files of a policy, each compared with its hash."""
    for name, entry in read_json(folder / "MANIFEST.json")["files"].items():
        path = folder / name
        if not path.exists() or file_sha256(path) != entry["sha256"]:
            raise broken(path, "it is missing, or its content does not match the manifest")
        if name not in OURS:
            yield name, path


def _adapter_config(run_dir: Path, folder: Path, start: Any) -> bytes:
    """The adapter's config with the name of its base where training had a path."""
    if start != "base":
        raise DataError(
            f"this policy is an adapter on top of {start}, which no hub has",
            where=str(folder),
            remedy="train with train.lora_save=merged, or push a policy that started from the base",
        )
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = base_name(read_config(run_dir).get("model"))
    return json.dumps(config, indent=2).encode()


def push(upload: Upload, *, public: bool = False) -> str:
    """Upload it, as one commit, to a repository that is made where there is none; its address.

    The hub is `HF_ENDPOINT`, by default huggingface.co, with the token of `hf auth login` or
    `HF_TOKEN`. Raises InfrastructureError where the hub refuses or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    operations = [CommitOperationAdd(name, file) for name, file in upload.files.items()]
    try:
        url = hub.create_repo(upload.repo, private=not public, exist_ok=True)
        hub.create_commit(
            upload.repo, operations, commit_message=f"{upload.policy} of a selfkd run"
        )
    except Exception as error:  # whatever its client raises: the network, the answer, the token
        said = " ".join(str(error).split())[:300]
        raise InfrastructureError(
            f"the hub did not take it: {said}",
            where=f"{hub.endpoint}/{upload.repo}",
            remedy="log in with `hf auth login` or set HF_TOKEN; HF_ENDPOINT names another hub",
        ) from error
    return str(url)
