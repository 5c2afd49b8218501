"""Sends a run's figures to TensorBoard, Weights & Biases, trackio or MLflow, from its record alone.

A figure of a round is `round/KEY` at the round's number, KEY as in `selfkd curves --json`; one of
the trainer's log is `train/KEY` at the optimiser step, counted over all rounds. What was sent is
remembered in the run's `tracking/`, so that a run which goes on, or an export after a failure,
sends each figure once. Servers, projects and keys are those of each tracker's own settings
(WANDB_PROJECT, WANDB_MODE, TRACKIO_SPACE_ID, MLFLOW_TRACKING_URI, ...).
"""

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from selfkd.errors import InfrastructureError, LockHeld, UsageError
from selfkd.files import disk_error, make_directory, write_json
from selfkd.hardware import installed
from selfkd.metrics import complete_rows
from selfkd.rundir import (
    of_verb,
    read_config,
    read_json,
    read_lines,
    round_numbers,
    round_steps,
    run_facts,
    run_state,
)
from selfkd.viewer.lines import flat_row, is_number
from selfkd.viewer.live import stamp_of_list
from selfkd.yamlfile import flatten

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Axis = Literal["round", "train"]

PROJECT = "selfkd"
"""Project, or experiment, where the tracker's own settings name none."""
PACKAGES = {"mlflow": "mlflow-skinny"}
"""Package to install, where it is not called like the tracker."""
WAIT = 3.0
"""Seconds between two looks at a run that goes on."""


@dataclass(frozen=True, slots=True)
class Point:
    """Figures at one place of an axis; `number` is the round that they are of."""

    axis: Axis
    number: int
    step: int
    time: float
    """When it was recorded, seconds since 1970."""
    figures: dict[str, float]


@dataclass(slots=True)
class Target:
    """What a tracker is told of a run, and how far the run is sent."""

    path: Path
    name: str
    config: dict[str, Any]
    id: str = ""
    """The run's name at the tracker; empty where it is new there."""

    @property
    def new(self) -> bool:
        """Whether nothing of this run was sent before."""
        return not self.id


class Tracker(Protocol):
    """Takes points, and is closed with whether the run ended well."""

    id: str

    def log(self, point: Point) -> None:
        """Send one point; may raise anything."""
        ...

    def close(self, finished: bool) -> None:
        """Flush; `finished` tells a run that ended well."""
        ...


# -- what there is to send ------------------------------------------------------------------------


def points(run_dir: Path, after: Mapping[str, int]) -> Iterator[list[Point]]:
    """Points of finished trainings and complete rounds, each of these a list, beyond `after`.

    `after` holds the last round that is not wanted, by axis.
    """
    rows = {row["round"]: row for row in complete_rows(run_dir)}
    offset = 0
    for number in round_numbers(run_dir):
        steps = [s for s in round_steps(run_dir, number) if s.finished]
        for step in of_verb(steps, "train"):
            lines = [line for line in read_lines(step.path / "log.jsonl") if "step" in line]
            if number > after["train"] and lines:
                yield [_trained(number, offset, line, _ended(step)) for line in lines]
            offset += max((line["step"] for line in lines), default=0)
        if number in rows and number > after["round"]:
            figures = _named("round", flat_row(rows[number]))
            figures.pop("round/round")
            (end,) = of_verb(steps, "round")
            yield [Point("round", number, number, _ended(end), figures)]


def _trained(number: int, offset: int, line: dict[str, Any], ended: float) -> Point:
    figures = _named("train", {k: v for k, v in line.items() if k not in ("step", "total_steps")})
    return Point("train", number, offset + line["step"], ended, figures)


def _named(axis: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among `values` under names that every tracker takes."""
    return {
        f"{axis}/" + re.sub(r"[^\w ./-]", "_", key.replace(".", "/")): float(value)
        for key, value in values.items()
        if is_number(value) and math.isfinite(value)
    }


def _ended(step: Any) -> float:
    return datetime.fromisoformat(step.manifest["finished"]).timestamp()


# -- sending --------------------------------------------------------------------------------------


def export(run_dir: Path, to: TrackerName, *, again: bool = False, follow: bool = False) -> int:
    """Send what was not sent yet; the number of points. `follow` goes on until the run ends.

    `again` sends everything, as a new run at the tracker. Raises UsageError where the tracker is
    not installed, LockHeld where another process is at it, InfrastructureError where it fails.
    """
    facts = run_facts(run_dir)
    if not installed(to):
        raise UsageError(
            f"{to} is not installed", where=f"--to {to}", remedy=f"pip install {package(to)}"
        )
    state = _State(run_dir, to, again=again)
    state.claim()
    if not follow and not any(points(run_dir, state.after)):
        return 0
    config = {k: v for k, v in flatten(read_config(run_dir)).items() if v is not None}
    target = Target(run_dir, facts["run"], config, state.id)
    with _blamed(to):
        tracker = TRACKERS[to](target)
    state.id = tracker.id
    sent = 0
    while True:
        mark, facts = _mark(run_dir), run_facts(run_dir)
        for group in list(points(run_dir, state.after)):
            for point in group:
                with _blamed(to):
                    tracker.log(point)
            state.sent(group[0])
            sent += len(group)
        if not follow or facts["state"] != "running":
            break
        while _mark(run_dir) == mark:
            time.sleep(WAIT)
    with _blamed(to):
        tracker.close(facts["state"] == "finished")
    return sent


def _mark(run_dir: Path) -> tuple[str, str]:
    """What changes when a step ends, or the run; not with every shard."""
    state = run_state(run_dir, read_lines(run_dir / "events.jsonl"))
    return stamp_of_list(run_dir), state


def package(to: TrackerName) -> str:
    """What to install for a tracker."""
    return PACKAGES.get(to, to)


class _State:
    """How much of a run a tracker has: kept in the run's directory."""

    def __init__(self, run_dir: Path, to: str, *, again: bool) -> None:
        self._path = run_dir / "tracking" / f"{to}.json"
        known = read_json(self._path) if self._path.exists() and not again else {}
        self.id = str(known.get("id", ""))
        self.after = {axis: int(known.get(axis, -1)) for axis in ("round", "train")}

    def claim(self) -> None:
        """Be the only process that sends this run there, as long as this object lives.

        The follower of a run that was killed may still be at it when the run is resumed.
        """
        make_directory(self._path.parent)
        self._lock = self._path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockHeld(
                "another process sends this run there already", where=str(self._path.parent)
            ) from error

    def sent(self, point: Point) -> None:
        self.after[point.axis] = point.number
        write_json(self._path, {"id": self.id, **self.after})


class _blamed:
    """Within it, whatever a tracker raises is an InfrastructureError that names the tracker."""

    def __init__(self, to: str) -> None:
        self._to = to

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise InfrastructureError(
                f"{self._to} failed: {said}",
                where=f"--to {self._to}",
                remedy="see to its settings, then export again: only what is missing is sent",
            ) from error


# -- the trackers ---------------------------------------------------------------------------------


class TensorBoard:
    """Event files in the run's `tensorboard/`: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, target: Target) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Its protocol modules are generated: no type checker knows what is in them.
        names = ("event", "summary", "tensor", "types")
        modules: list[Any] = [
            import_module(f"tensorboard.compat.proto.{name}_pb2") for name in names
        ]
        self._events, self._summaries, self._tensors, self._types = modules
        folder = target.path / "tensorboard"
        try:
            for old in folder.glob("events.out.tfevents.*") if target.new else ():
                old.unlink()
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from error
        self.id = target.name
        self._writer = EventFileWriter(str(folder))
        if target.new:
            self._text("config", json.dumps(target.config, indent=1, default=str))

    def log(self, point: Point) -> None:
        """One event for each figure."""
        for tag, value in point.figures.items():
            self._add(point.time, point.step, tag=tag, simple_value=value)
        self._writer.flush()

    def _text(self, tag: str, text: str) -> None:
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING)
        tensor.string_val.append(f"```\n{text}\n```".encode())
        tensor.tensor_shape.dim.add(size=1)
        kind = self._summaries.SummaryMetadata(plugin_data={"plugin_name": "text"})
        self._add(time.time(), 0, tag=tag, metadata=kind, tensor=tensor)

    def _add(self, when: float, step: int, **value: Any) -> None:
        summary = self._summaries.Summary(value=[self._summaries.Summary.Value(**value)])
        self._writer.add_event(self._events.Event(wall_time=when, step=step, summary=summary))

    def close(self, finished: bool) -> None:
        """Flush and close the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases; what it keeps on disk lies in the run's `wandb/`."""

    def __init__(self, target: Target) -> None:
        wandb: Any = import_module("wandb")
        os.environ.setdefault("WANDB_DIR", str(target.path))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=target.name,
            id=target.id or None,
            resume=None if target.new else "allow",
            config=target.config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.id = str(self._run.id)
        for axis in ("round", "train"):
            self._run.define_metric(f"{axis}/step", hidden=True)
            self._run.define_metric(f"{axis}/*", step_metric=f"{axis}/step")

    def log(self, point: Point) -> None:
        """The figures beside the place on their axis."""
        self._run.log({f"{point.axis}/step": point.step, **point.figures})

    def close(self, finished: bool) -> None:
        """Upload the rest."""
        self._run.finish(exit_code=0 if finished else 1)


class Trackio:
    """A run of trackio, kept where trackio keeps its runs."""

    def __init__(self, target: Target) -> None:
        trackio: Any = import_module("trackio")
        self.id = target.id or f"{target.name}-{int(time.time())}"
        resume = "never" if target.new else "must"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        config = {k: v if is_number(v) else str(v) for k, v in target.config.items()}
        self._run = trackio.init(project=project, name=self.id, resume=resume, config=config)

    def log(self, point: Point) -> None:
        """The figures at their place."""
        self._run.log(point.figures, step=point.step)

    def close(self, finished: bool) -> None:
        """Wait until everything is stored."""
        self._run.finish()


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in its own default place."""

    BATCH = 500

    def __init__(self, target: Target) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self.id = target.id
        if target.new:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            self.id = self._client.create_run(experiment, run_name=target.name).info.run_id
            values = [(k, str(v)[:500]) for k, v in target.config.items()]
            params = [self._entities.Param(k, v) for k, v in values if v]
            for start in range(0, len(params), 100):
                self._client.log_batch(self.id, params=params[start : start + 100])

    def log(self, point: Point) -> None:
        """The figures as one batch or more."""
        stamp = int(point.time * 1000)
        metrics = [
            self._entities.Metric(name, value, stamp, point.step)
            for name, value in point.figures.items()
        ]
        for start in range(0, len(metrics), self.BATCH):
            self._client.log_batch(self.id, metrics=metrics[start : start + self.BATCH])

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[TrackerName, Callable[[Target], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def wanted(report_to: Sequence[TrackerName] | None) -> list[TrackerName]:
    """The trackers of a config; by default TensorBoard where it is installed."""
    if report_to is None:
        return ["tensorboard"] if installed("tensorboard") else []
    return list(dict.fromkeys(report_to))
