"""Puts the parts of a run together: model, prompts, engine, cluster."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfkd.chat import load_tokenizer
from selfkd.cluster import ANYWHERE, Cluster, Place
from selfkd.config import Config, Resolved
from selfkd.errors import UsageError
from selfkd.hardware import compute_dtype, has_gpu, installed
from selfkd.ledger import Ledger
from selfkd.memory import Footprint, context_length, footprint
from selfkd.models import check_model_dir, resolve_model
from selfkd.progress import Reporter
from selfkd.prompts import PromptSource, open_prompts, require_answers
from selfkd.run import Run
from selfkd.setting import Setting

COUNTED: dict[str, Literal["info", "warning"]] = {"overlap": "warning", "bad_rows": "warning"}
"""Counts of the prompts that a user has to know of."""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence about a run before its first round."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs of this machine, opened and checked: nothing is written or started yet."""

    setting: Setting
    source: PromptSource
    notes: tuple[Note, ...]


def prepare(resolved: Resolved) -> Prepared:
    """Open model and prompts, and refuse what can be refused before a run has a directory."""
    config = resolved.config
    model_path = resolve_model(config.model)
    tokenizer = load_tokenizer(model_path, config.chat_template)
    source = open_run_prompts(resolved)
    kind, said = engine_kind(config.engine.kind)
    plan, swap = check_fit(resolved, model_path)
    setting = Setting(
        model_path=model_path,
        tokenizer=tokenizer,
        engine=kind,
        swap=swap,
        context=min(config.engine.max_model_len, context_length(model_path)),
        sampler=sampler_place(config),
        trainer=Place(gpu_share(config.cluster.trainer_gpus), config.cluster.trainer_cpus),
    )
    told = [Note(said, "warning")] if said else []
    return Prepared(setting, source, (*told, *notes(resolved, source, plan, swap)))


def check_fit(resolved: Resolved, model_path: Path) -> tuple[Footprint, bool]:
    """The planned memory, and whether sampler and trainer take turns in it; refuses a directory
    that is no model, a judge that lacks something, and what does not fit."""
    config = resolved.config
    check_model_dir(model_path)
    check_judges(resolved)
    plan = plan_memory(config, model_path)
    plan.check()
    swap = residency(config, plan) == "swap"
    if swap and config.engine.overlap:
        raise UsageError(
            f"sampler and trainer cannot work at once: they take turns in {plan.total:.1f} GiB",
            where="engine.overlap",
            remedy="set engine.residency=both if there is memory enough, or engine.overlap=false",
        )
    return plan, swap


@contextlib.contextmanager
def assemble(
    path: Path,
    resolved: Resolved,
    ledger: Ledger,
    reporter: Reporter,
    check_stop: Callable[[], None],
    prepared: Prepared,
) -> Iterator[Run]:
    """A run ready for its loop."""
    config, setting = resolved.config, prepared.setting
    engine = f"{setting.engine} {compute_dtype(config.engine.dtype)}"
    announce(path, resolved, reporter, ledger, engine)
    for note in prepared.notes:
        ledger.event("message", text=note.text, level=note.level)
        reporter.event("message", text=note.text, level=note.level)
    with Cluster(config.cluster.address, timeout=config.cluster.timeout) as cluster:
        run = Run(resolved, ledger, cluster, setting, prepared.source, reporter, check_stop)
        try:
            yield run
        finally:
            run.close()


@contextlib.contextmanager
def assemble_record(
    path: Path,
    resolved: Resolved,
    ledger: Ledger,
    reporter: Reporter,
    check_stop: Callable[[], None],
    *,
    judging: bool,
) -> Iterator[Run]:
    """A run that samples and trains nothing: neither model nor prompts are opened, and without
    `judging` no process is started."""
    config = resolved.config
    announce(path, resolved, reporter, ledger, "no engine")
    setting = Setting(Path(config.model), None, "transformers", False, 0, ANYWHERE, ANYWHERE)
    prompts: Any = None
    cluster = Cluster(config.cluster.address, timeout=config.cluster.timeout)
    with cluster if judging else contextlib.nullcontext():
        run = Run(resolved, ledger, cluster, setting, prompts, reporter, check_stop)
        try:
            yield run
        finally:
            run.close()


def open_run_prompts(resolved: Resolved) -> PromptSource:
    """The run's prompts, refused where a judge needs an answer that is not there."""
    config = resolved.config
    source = open_prompts(config.prompts, seed=config.seed, base=Path.cwd())
    if resolved.judge.needs_answer:
        require_answers(source.known(), resolved.judge.name)
    if resolved.gold_judge and resolved.gold_judge.needs_answer:
        require_answers(source.heldout(), resolved.gold_judge.name)
    return source


def check_judges(resolved: Resolved) -> None:
    """UsageError where a judge lacks something here; on a cluster it says so where it starts."""
    for judge in (resolved.judge, resolved.gold_judge):
        if judge and resolved.config.cluster.address == "local":
            judge.check_ready()


def engine_kind(
    wanted: Literal["auto", "vllm", "transformers"],
) -> tuple[Literal["vllm", "transformers"], str]:
    """The engine to use, and a sentence where that is not what one would expect."""
    if wanted == "vllm" and not installed("vllm"):
        raise UsageError(
            "vLLM is not installed",
            where="engine.kind",
            remedy="install selfkd[cpu] or selfkd[gpu], or set engine.kind=transformers",
        )
    if wanted != "auto":
        return wanted, ""
    if installed("vllm"):
        return "vllm", ""
    return "transformers", "vLLM is not installed: sampling with transformers, which is slower"


def plan_memory(config: Config, model_path: Path) -> Footprint:
    """The estimated memory of sampler and trainer under this config."""
    train = config.train
    return footprint(
        model_path,
        kv_cache_gib=config.engine.kv_cache_gib,
        sampled_in=compute_dtype(config.engine.dtype),
        trained_in=compute_dtype(train.dtype),
        lora_rank=train.lora_rank,
        batch_tokens=(train.micro_batch_size or train.batch_size) * 2 * config.sampling.max_tokens,
    )


def residency(config: Config, plan: Footprint) -> str:
    """`both` or `swap`; what shares a card takes turns, as vLLM fills most of one."""
    if config.engine.residency != "auto":
        return config.engine.residency
    asked = config.cluster.sampler_gpus, config.cluster.trainer_gpus
    if 0 < sum(map(gpu_share, asked)) <= 1:
        return "swap"
    return "both" if plan.both_fit else "swap"


def gpu_share(asked: float | None) -> float:
    """GPUs that a role reserves; sampler and trainer share a single card by halves."""
    if asked is not None:
        return asked
    return 0.5 if has_gpu() else 0


def sampler_place(config: Config) -> Place:
    """What each sampler reserves. Several need something to be spread by: a CPU each, if no GPU."""
    parallel = config.engine.tensor_parallel_size
    asked = config.cluster.sampler_gpus
    gpus = float(parallel) if asked is None and parallel > 1 else gpu_share(asked)
    cpus = config.cluster.sampler_cpus
    return Place(gpus, cpus or float(config.engine.replicas > 1 and not gpus))


def announce(
    path: Path, resolved: Resolved, reporter: Reporter, ledger: Ledger, engine: str
) -> None:
    """Tell and record that the run starts, or goes on."""
    config = resolved.config
    resumed = (path / "events.jsonl").exists()
    facts = {
        "name": path.name,
        "loop": resolved.loop.name,
        "model": Path(config.model).name,
        "judge": resolved.judge.name,
        "rounds": resolved.options.rounds,
        "engine": engine,
        "resumed": resumed,
    }
    ledger.event("run_started", **facts)
    reporter.event("run_started", path=str(path), **facts)


def notes(resolved: Resolved, source: PromptSource, plan: Footprint, swap: bool) -> list[Note]:
    """What a user should know before the first round."""
    found = [
        Note(f"prompts: {count} {what.replace('_', ' ')}", COUNTED.get(what, "info"))
        for what, count in source.report.items()
        if count
    ]
    found.append(
        Note(
            f"sampler (about {plan.sampler:.1f} GiB) and trainer ({plan.trainer:.1f} GiB) "
            f"{'take turns in' if swap else 'both stay in'} {plan.total:.1f} GiB of memory"
        )
    )
    if not source.heldout():
        found.append(
            Note("no held-out prompts: nothing is measured against gold, and no gate holds")
        )
    elif resolved.gold_judge is None:
        found.append(
            Note(
                "no gold judge: held-out is not measured, and no gate holds; name one with "
                "gold_judge"
            )
        )
    return found
