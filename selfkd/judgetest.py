"""Tries a judge outside of a run, as a run would use it: `selfkd judge test`."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfkd.assembly import engine_kind, gpu_share
from selfkd.batches import Batch
from selfkd.cluster import Cluster, Place
from selfkd.controls import ControlOptions, blind, plant
from selfkd.errors import UsageError
from selfkd.judgepool import JudgePool
from selfkd.judgeprompts import forged_verdict
from selfkd.judging import JudgeSpec, resolve_judge
from selfkd.records import Sample, Verdict, read_rows
from selfkd.samplefile import Labelled
from selfkd.samplers import calls_of_model

BATCH = 256

Judge = Callable[[Sequence[Sample]], list[Verdict]]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a judge said of samples, once or several times, and of the controls planted there."""

    spec: JudgeSpec
    samples: list[Sample]
    passes: list[list[Verdict]]
    """Verdicts in the order of the samples. The second, fourth, ... time each prompt's samples
    are shown in reverse."""
    gold: Mapping[str, float]
    """Sample id -> label."""
    controls: list[Sample]
    control_verdicts: list[Verdict]
    options: ControlOptions

    @property
    def verdicts(self) -> list[Verdict]:
        """Those of the first time."""
        return self.passes[0]

    @property
    def sees_prompts(self) -> bool:
        """Whether the judge may look at a prompt's samples together, so that their order counts."""
        lists = self.spec.plugin.kind in ("class", "trl")
        return self.spec.compares or (lists and not self.spec.calls)


def spec_of(judge: str, options: Sequence[str] = ()) -> JudgeSpec:
    """The judge that a command line names, with its options as `name=value`, checked."""
    values: dict[str, Any] = {"use": judge}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{text!r} is no option", remedy="write name=value: tolerance=0.01")
        try:
            values[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            values[name] = value  # a string that happens to look like broken YAML
    spec = resolve_judge(values, Path.cwd())
    spec.validate()
    return spec


def try_judge(
    spec: JudgeSpec,
    labelled: Labelled,
    *,
    timeout: float = 60.0,
    repeats: int = 1,
    controls: ControlOptions | None = None,
    gold_judge: JudgeSpec | None = None,
    model: str | None = None,
    cluster: Cluster | None = None,
) -> Trial:
    """Have samples judged `repeats` times, and the controls once; `timeout` in seconds a sample.

    `gold_judge` gives the labels of samples without one, `model` answers a judge that asks the
    run's sampler. Nothing comes from the verdict cache: a verdict from there would say nothing of
    the judge. On a cluster of its own unless given one.
    """
    samples, gold = labelled.samples, dict(labelled.gold)
    options = controls or ControlOptions.model_validate({})
    place = contextlib.nullcontext(cluster) if cluster else Cluster("local", timeout=60)
    with place as running:
        with _judge(spec, running, timeout, model) as judge:
            passes = [judge(samples[::-1] if k % 2 else samples) for k in range(repeats)]
            rewards = {v.sample_id: v.reward for v in passes[0]}
            planted = plant(samples, rewards, options, forged_verdict(spec, options.score))
            said = judge(blind(planted, samples[0].policy)) if planted else []
        if gold_judge:
            with _judge(gold_judge, running, timeout, model) as judge:
                owed = [s for s in samples if s.id not in gold]
                gold |= {v.sample_id: v.reward for v in judge(owed) if v.reward is not None}
    places = {s.id: i for i, s in enumerate(samples)}
    ordered = [sorted(verdicts, key=lambda v: places[v.sample_id]) for verdicts in passes]
    return Trial(spec, samples, ordered, gold, planted, said, options)


@contextlib.contextmanager
def _judge(spec: JudgeSpec, cluster: Cluster, timeout: float, model: str | None) -> Iterator[Judge]:
    """A judge as a function of samples; of one call, those of one prompt come together."""
    pool = JudgePool(spec, cluster, workers=1, timeout=timeout, check=lambda: None)
    answering = contextlib.nullcontext()
    if model and spec.engine:
        kind, _ = engine_kind("auto")
        answering = calls_of_model(model, cluster, kind, place=Place(gpus=gpu_share(None)))
    try:
        with answering as calls:
            yield lambda samples: [
                verdict
                for table in pool.judge_batches(_batches(samples), calls)
                for verdict in read_rows(table, Verdict)
            ]
    finally:
        pool.close()


def _batches(samples: Sequence[Sample]) -> Iterator[Batch]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt.id].append(sample)
    batch: list[Sample] = []
    for group in groups.values():
        batch += group
        if len(batch) >= BATCH:
            yield Batch.of(batch)
            batch = []
    if batch:
        yield Batch.of(batch)
