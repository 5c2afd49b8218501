"""Starts, resumes and forks runs: everything around the loop."""

import contextlib
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfkd.config import Resolved, resolve
from selfkd.errors import DataError, SelfkdError, Stopped, UsageError
from selfkd.files import disk_error, make_directory, share, write_atomically
from selfkd.hardware import cores
from selfkd.judging import JudgeSpec, resolve_judge
from selfkd.ledger import Ledger, broken, now, policy_dir
from selfkd.locks import Presence, RunLock
from selfkd.mirror import Mirror
from selfkd.progress import Reporter
from selfkd.provenance import provenance
from selfkd.reporting import Reports
from selfkd.retention import is_pruned
from selfkd.rundir import of_verb, round_numbers, round_steps
from selfkd.stopping import EndOfRun, StopSignals
from selfkd.yamlfile import flatten

if TYPE_CHECKING:
    from selfkd.assembly import Prepared
    from selfkd.run import Run

SCHEMA = 1
"""Version of the run directory's layout."""

OPERATIONAL = re.compile(
    r"rounds|report_to|storage|prompts\.skip_bad|judging\.(?!anchors).*|cluster\..*|controls\.action|alarms\..*"
    r"|keep_policies\..*"
    r"|engine\.(max_num_seqs|kv_cache_gib|gpu_memory|replicas|tensor_parallel_size|sync|residency"
    r"|max_restarts|start_timeout)"
)
"""Keys that may change on resume: they say how a run is carried out, not what it computes. More
rounds extend a run."""


def new_run(resolved: Resolved, root: Path, name: str | None) -> Path:
    """Create the directory of a new run and record its config; refuses a name that is taken."""
    wanted = None if name is None else root / name_of(name)
    make_directory(root)
    while True:
        path = wanted or _next_free(root, resolved.loop.name)
        try:
            path.mkdir()
        except FileExistsError:
            if wanted is None:
                continue  # another run took it since
            raise UsageError(
                f"run {path.name!r} exists",
                where=str(path),
                remedy="pass --resume to go on with it, `selfkd fork` to branch off, or another "
                "--name",
            ) from None
        except OSError as error:
            raise disk_error(error, path) from error
        _create(path, resolved, parent=None)
        return path


def name_of(name: str) -> str:
    """`name` if it can be a run's directory, else a UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            f"{name[:120]!r} cannot name a run",
            where="--name",
            remedy="use up to 100 letters, digits, dots, dashes and underscores",
        )
    return name


def resume_run(path: Path, overrides: Sequence[str] = ()) -> Resolved:
    """The recorded config of a run with operational overrides applied."""
    raw, head = read_run(path)
    return _settled(path, raw, head, resolve(raw, overrides, file=str(path / "run.yaml")))


def resume_with(path: Path, resolved: Resolved) -> Resolved:
    """Check that a run may go on under `resolved`, as read from a config file."""
    raw, head = read_run(path)
    return _settled(path, raw, head, resolved)


def fork_run(path: Path, round: int, name: str | None, overrides: Sequence[str] = ()) -> Path:
    """Create a run that shares the rounds of `path` before `round`, under a changed config.

    Shards and policies are hard links where the file system allows it, copies elsewhere. From
    `round` on the fork takes over what is still asked for in the same way, by the same policy: the
    samples of that round, unless the change is in how they are drawn (`Ledger.offered`).
    """
    raw, head = read_run(path)
    resolved = resolve(raw, overrides, file=str(path / "run.yaml"))
    finished = [n for n in range(round) if list(path.glob(f"rounds/{n:03d}/*-round/manifest.json"))]
    if round < 0 or len(finished) < round:
        raise UsageError(
            f"round {round} cannot be forked: rounds 0 to {len(finished) - 1} are finished",
            where=str(path),
            remedy=f"fork at round {len(finished)} or before",
        )
    if head.get("parent") and "again" in head["parent"]:
        raise UsageError(
            "this run only holds what another one sampled: it has no policies to go on from",
            where=str(path),
            remedy=f"fork {head['parent']['run']} with the new judge or rules: its samples are "
            "used again where they fit",
        )
    _refuse_pruned(path, round)
    with staged_run(path, resolved, {"round": round}, name, "fork") as staged:
        for number in range(round):
            share(path / "rounds" / f"{number:03d}", staged.path / "rounds" / f"{number:03d}")
            policy = f"policies/round-{number + 1:03d}"
            if (path / policy).exists():
                share(path / policy, staged.path / policy)
    return staged.target


@dataclass(frozen=True, slots=True)
class Staged:
    """A run in the making: what is put into `path` is in `target` once it is whole."""

    path: Path
    target: Path


@contextlib.contextmanager
def staged_run(
    path: Path, resolved: Resolved, lineage: Mapping[str, Any], name: str | None, what: str
) -> Iterator[Staged]:
    """A run made from the run `path`, whose name and creation are added to its `lineage`.

    `name` defaults to that of the parent and `what`; UsageError where it is taken.
    """
    target = (
        _next_free(path.parent, f"{path.name}-{what}")
        if name is None
        else path.parent / name_of(name)
    )
    if target.exists():
        raise UsageError(
            f"run {target.name!r} exists", where=str(target), remedy="give another --name"
        )
    staged = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    yield Staged(staged, target)
    head = read_run(path)[1]
    parent = {"run": path.name, "created": head["created"], **lineage}
    _create(staged, resolved, parent=parent)
    staged.rename(target)


def _refuse_pruned(path: Path, round: int) -> None:
    """A fork makes anew what `round` recorded: refuse it where that takes weights that are gone."""
    if not (gone := _pruned_for(path, round)):
        return
    others = [str(n) for n in range(round) if not _pruned_for(path, n)]
    raise UsageError(
        f"round {round} cannot be forked: it samples from {gone[0]}, which was pruned",
        where=str(path),
        remedy=f"fork at an earlier round ({', '.join(others)}); keep_policies says what stays",
    )


def _pruned_for(path: Path, round: int) -> list[str]:
    samplings = of_verb(round_steps(path, round), "generate")
    names = {str(step.args().get("policy_name", "")) for step in samplings}
    trained = sorted(n for n in names if n.startswith("round-"))
    return [n for n in trained if is_pruned(policy_dir(path, n))]


def execute(
    path: Path,
    resolved: Resolved,
    reporter: Reporter,
    *,
    prepared: "Prepared | None" = None,
    play: "Callable[[Run], None] | None" = None,
) -> str:
    """Run the loop to its end in the run directory `path`; the name of the best policy.

    Everything recorded is replayed, so this is also how a run is resumed. Raises Stopped on a
    requested stop; every other SelfkdError is recorded as `run_failed` first. `prepared` is what
    was opened already; `play` is done with the run instead of the whole loop.
    """
    from selfkd.again import judge_again
    from selfkd.assembly import assemble, assemble_record, prepare

    started = time.monotonic()
    parent = read_run(path)[1].get("parent") or {}
    again = parent.get("again")
    play = play or (judge_again if again else lambda run: resolved.loop.fn(run, resolved.options))
    storage = resolved.config.storage
    with (
        Mirror(storage, path) if storage else contextlib.nullcontext(),
        Reports(path, resolved.config.report_to, reporter) as reports,
        RunLock(path) as lock,
        Presence() as presence,
        StopSignals() as stop,
    ):
        inherited = parent["round"] - 1 if parent else -1
        offered = _origin(path, parent, resolved) if parent and not again else None
        # Workers of a cluster that was joined have another working directory.
        ledger = Ledger(path.resolve(), inherited=inherited, offered=offered)
        if lock.stale:
            text = f"process {lock.stale.get('pid')} ended without finishing this run; going on"
            reporter.event("message", text=text, level="warning")
        if presence.others:
            text = f"another run is at work here: the two share {cores()} cores, and the memory"
            reporter.event("message", text=text, level="warning")

        def check() -> None:
            reports.check()
            stop.check()

        try:
            parts = (path, resolved, ledger, reporter, check)
            # The policies that sampled are only needed where one of them is to judge.
            if again and not resolved.judge.engine:
                gathered = assemble_record(*parts, judging="judge" in again)
            else:
                gathered = assemble(*parts, prepared or prepare(resolved))
            with gathered as run:
                reports.start()
                reason = ""
                try:
                    play(run)
                except EndOfRun as end:
                    reason = end.reason
                run.finish()
                seconds = time.monotonic() - started
                run.emit("run_finished", seconds=seconds, reason=reason, best=run.standing)
                return run.standing
        except Stopped as error:
            ledger.event("stopped", reason=error.message)
            raise
        except SelfkdError as error:
            if not isinstance(error.__cause__, OSError):
                ledger.event("run_failed", error=str(error))
            raise


def _origin(path: Path, parent: Mapping[str, Any], resolved: Resolved) -> Path | None:
    """The run that a fork comes from, if it is still there and drew with the same seed."""
    origin = path.parent / parent["run"]
    with contextlib.suppress(SelfkdError):
        raw, head = read_run(origin)
        if head["created"] == parent["created"] and raw["seed"] == resolved.config.seed:
            return origin
    return None


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's recorded config, and its head (name, versions, parent)."""
    file = path / "run.yaml"
    if not file.is_file():
        raise UsageError(
            "not a run directory: it has no run.yaml", where=str(path), remedy="see `selfkd ls`"
        )
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        head = document.pop("run")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise broken(file, f"it cannot be read ({error})") from error
    if head["schema"] != SCHEMA:
        raise DataError(
            f"this run has layout {head['schema']}, this selfkd reads layout {SCHEMA}",
            where=str(file),
            remedy=f"use the selfkd that made it ({head['versions'].get('selfkd', '?')})",
        )
    return document, head


def _settled(
    path: Path, raw: Mapping[str, Any], head: Mapping[str, Any], resolved: Resolved
) -> Resolved:
    """`resolved` if it may continue the run, whose record is then brought up to date."""
    document = resolved.document()
    # Resolved again: a run that began before a key existed has the key's default.
    before = resolve(raw, file=str(path / "run.yaml")).document()
    old, new = flatten(before), flatten(document)
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    free = [key for key in ("judge", "gold_judge") if _same_judge(raw.get(key), document.get(key))]
    refused = [
        f"{k}: {old.get(k)!r} -> {new.get(k)!r}"
        for k in changed
        if not OPERATIONAL.fullmatch(k) and k.partition(".")[0] not in free
    ]
    if head["loop_identity"] != resolved.loop.identity:
        refused.append(f"the code of loop {resolved.loop.name} ({resolved.loop.source})")
    if not refused and _judged_otherwise(path, head, resolved.judge):
        judge = resolved.judge
        refused.append(f"the code of judge {judge.name} ({judge.plugin.source}) or its options")
    if refused:
        raise UsageError(
            "the run was started with another config:\n  " + "\n  ".join(refused),
            where=str(path),
            remedy=f"undo the change, or run `selfkd fork {path} --round N` to branch off",
        )
    if changed:
        _write(path, head, document)
    return resolved


def _judged_otherwise(path: Path, head: Mapping[str, Any], judge: JudgeSpec) -> bool:
    """Whether the run has verdicts of its own, finished or not, by what its judge was before."""
    before = head["judge_identity"]
    if before == judge.identity():
        return False
    first = head["parent"]["round"] if head.get("parent") else 0
    own = (round_steps(path, n) for n in round_numbers(path) if n >= first)
    steps = of_verb(itertools.chain.from_iterable(own), "judge")
    begun = (step for step in steps if (step.path / "step.json").exists())
    return any(step.args().get("judge") == before for step in begun)


def _same_judge(old: Any, new: Any) -> bool:
    """Whether two judges differ at most in how they are carried out, such as in a budget."""
    if old is None or new is None:
        return False
    try:
        one, other = (resolve_judge(value, Path.cwd()).identity() for value in (old, new))
    except UsageError:
        return False
    return one == other


def _create(path: Path, resolved: Resolved, *, parent: Mapping[str, Any] | None) -> None:
    head = {
        "schema": SCHEMA,
        "created": now(),
        "loop_identity": resolved.loop.identity,
        "paper": resolved.loop.paper,
        "judge_identity": resolved.judge.identity(),
        "parent": parent,
        **provenance(),
    }
    make_directory(path)
    _write(path, head, resolved.document())


def _write(path: Path, head: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({"run": dict(head), **document}, sort_keys=False, allow_unicode=True)
    write_atomically(path / "run.yaml", text.encode())


def _next_free(root: Path, stem: str) -> Path:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    number = 1
    while (root / f"{stem}-{number:03d}").exists():
        number += 1
    return root / f"{stem}-{number:03d}"
