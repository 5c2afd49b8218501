"""What a config may say, how overrides change it, and errors that point at the line.

A config is flat: the engine's sections below, and beside them the options of the chosen loop
(`rounds`, `samples_per_prompt`, ...). Paths are relative to the file that names them; those of a
command-line override are relative to the working directory.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from selfkd.alarmconfig import AlarmConfig
from selfkd.controls import ControlOptions
from selfkd.errors import UsageError
from selfkd.judging import JudgeSpec, absolute_judge, resolve_judge
from selfkd.options import Options
from selfkd.plugins import LoopPlugin, absolute_spec, find_loop
from selfkd.processes import ClusterConfig, EngineConfig, JudgingConfig
from selfkd.prompts import PromptOptions
from selfkd.retention import KeepOptions
from selfkd.sampling.base import Sampling
from selfkd.tracking import TrackerName
from selfkd.training.base import TrainOptions
from selfkd.yamlfile import Lines, read_yaml

SHORTHAND = {"prompts": "source", "judge": "use", "gold_judge": "use", "cluster": "address"}
"""Sections that may be written as one string, and the key that the string stands for."""

OWN_TEACHERS = ("base", "previous", "best", "live", "ema")
"""Teachers that are the policy itself in some state; any other `teacher` of a loop is a model."""

SECRET = re.compile(r"\b(sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{16,})")


class LoopOptions(Options):
    """Base of a loop's own options."""

    rounds: int = Field(4, ge=1)
    """Policies to train, one a round."""

    def samples(self, prompts: int) -> int:
        """Samples of a round over so many prompts, for plans."""
        return prompts * getattr(self, "samples_per_prompt", 1)


class GateConfig(Options):
    """Whether a policy that measures worse on held-out prompts may stay."""

    mode: Literal["auto", "off"] = "auto"
    """auto compares every new policy with the best one where a gold judge measures held-out."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Level of the one-sided paired test below which a fall counts."""
    on_fail: Literal["stop", "continue"] = "stop"
    """After a roll-back: end the run, or go on from the best policy."""

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false


class Config(Options):
    """The engine's part of a config; the loop's options stand beside these keys."""

    loop: str
    """A built-in loop, an installed one, or path.py:name."""
    model: str
    """A Hugging Face model directory, a known name (`selfkd model list`) or a hub id."""
    prompts: PromptOptions
    """Where prompts come from: a file, a data set, reasoning_gym:TASK, or a mapping."""
    judge: str | dict[str, Any]
    """Who scores the samples: a name, path.py:name, or a mapping {use: name, option: value}."""
    gold_judge: str | dict[str, Any] | None = None
    """Who scores held-out prompts; default: the judge itself where it compares with an answer."""
    seed: int = Field(0, ge=0)
    """Seed of prompts, sampling, rules and training."""
    sampling: Sampling = Field(default_factory=lambda: Sampling.model_validate({}))
    """How completions are drawn."""
    train: TrainOptions = Field(default_factory=lambda: TrainOptions.model_validate({}))
    """Optimiser settings."""
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig.model_validate({}))
    """The sampler."""
    judging: JudgingConfig = Field(default_factory=lambda: JudgingConfig.model_validate({}))
    """Judge processes and their limits."""
    cluster: ClusterConfig = Field(default_factory=lambda: ClusterConfig.model_validate({}))
    """Ray."""
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
    """Roll-back of policies that measure worse."""
    controls: ControlOptions = Field(default_factory=lambda: ControlOptions.model_validate({}))
    """Completions of known worth that the judge is shown in every round."""
    alarms: AlarmConfig = Field(default_factory=lambda: AlarmConfig.model_validate({}))
    """What goes wrong in a round, when it is told, and what is done about it."""
    keep_policies: KeepOptions = Field(default_factory=lambda: KeepOptions.model_validate({}))
    """Which policies stay on disk; N alone means {last: N}."""
    on_no_signal: Literal["stop", "continue"] = "stop"
    """When a round keeps no sample: stop, or go on with the same policy."""
    on_bad_training: Literal["stop", "continue"] = "stop"
    """When a training diverges (NaN loss): stop, or go on with the same policy."""
    report_to: list[TrackerName] | None = None
    """Trackers that get the figures as the run goes on; none of them can stop it. Default:
    tensorboard where it is installed; []: nobody."""
    storage: str | None = None
    """An object store that the run is copied to as it goes on, such as s3://bucket/runs; with
    `selfkd resume s3://bucket/runs/NAME` another machine goes on with it."""
    chat_template: str | None = None
    """A .jinja file, or plain; default: the tokenizer's own."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("cluster")
    @classmethod
    def _all_weights(cls, value: ClusterConfig, info: ValidationInfo) -> ClusterConfig:
        train = info.data.get("train")
        if value.trainer_fsdp and train and train.lora_rank:
            raise ValueError(
                "trainer_fsdp is for all weights, and train.lora_rank is set: drop one"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        cluster = value.get("cluster") if isinstance(value, dict) else None
        if isinstance(cluster, str):
            return {**value, "cluster": {"address": cluster}}
        return value


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config whose plug-ins were found and whose options were checked."""

    config: Config
    options: LoopOptions
    loop: LoopPlugin
    judge: JudgeSpec
    gold_judge: JudgeSpec | None

    def document(self) -> dict[str, Any]:
        """The whole config as plain values, defaults included; resolving it gives this again."""
        return self.config.model_dump(mode="json") | self.options.model_dump(mode="json")


def load(path: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read a config file, apply `key.path=value` overrides, and resolve it.

    Raises UsageError naming `file:line` (or the override), the key, the value and the remedy.
    """
    raw, lines = read_yaml(path)
    return resolve(_absolute(raw, path.parent), overrides, lines=lines, file=str(path))


def resolve(
    raw: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    lines: Lines | None = None,
    file: str = "",
) -> Resolved:
    """Resolve plain values; `lines` and `file` serve error messages."""
    places = {key: f"{file}:{line}" for key, line in (lines or {}).items()}
    merged = dict(raw)
    for text in overrides:
        key, value = _parse_override(text)
        merged = _set(merged, key, value)
        places[key] = f"override {text!r}"
    _refuse_secrets(merged, (), places)
    if "loop" not in merged:
        raise UsageError("a config names its loop", where=file, remedy="add `loop: rest_em`")
    loop = _at("loop", places, lambda: find_loop(str(merged["loop"])))
    own, engine = _split(merged, loop, places)
    config = _validate(Config, engine, places, file)
    options = _validate(loop.options, own, places, file)
    judge = _at("judge", places, lambda: _judge(config.judge))
    gold = judge if judge.gold else None
    if config.gold_judge is not None:
        value = config.gold_judge
        gold = _at("gold_judge", places, lambda: _judge(value))
    return Resolved(config, options, loop, judge, gold)


def _judge(value: str | dict[str, Any]) -> JudgeSpec:
    spec = resolve_judge(value, Path.cwd())
    spec.validate()
    _ = spec.engine  # refuses judges that ask several policies at once
    return spec


def _at(key: str, places: Mapping[tuple[str, ...], str], action: Any) -> Any:
    """Run `action`; a UsageError without a place gets that of `key`."""
    try:
        return action()
    except UsageError as error:
        if not error.where:
            # An option of the plug-in has a line of its own where the message names it.
            own = [p for k, p in places.items() if k[0] == key and repr(k[-1]) in error.message]
            error.where = own[-1] if own else places.get((key,), key)
        raise


def _split(
    raw: Mapping[str, Any], loop: LoopPlugin, places: Mapping[tuple[str, ...], str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The loop's options and the engine's sections of a flat config."""
    if not issubclass(loop.options, LoopOptions):
        raise UsageError(
            f"the options of loop {loop.name!r} do not derive from selfkd.LoopOptions",
            where=loop.source,
        )
    clash = loop.options.model_fields.keys() & Config.model_fields.keys()
    if clash:
        raise UsageError(
            f"loop {loop.name!r} names an option like a config section: {', '.join(sorted(clash))}",
            where=loop.source,
            remedy="rename the option",
        )
    known = [*loop.options.model_fields, *Config.model_fields]
    for key in raw:
        if key not in known:
            raise unknown_key((str(key),), known, places)
    own = {k: v for k, v in raw.items() if k in loop.options.model_fields}
    return own, {k: v for k, v in raw.items() if k in Config.model_fields}


def _validate(
    model: Any, value: Mapping[str, Any], places: Mapping[tuple[str, ...], str], file: str
) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _explain(error, model, places, file) from error


def _explain(
    error: ValidationError,
    model: type[BaseModel],
    places: Mapping[tuple[str, ...], str],
    file: str,
) -> UsageError:
    first, *others = error.errors()
    key = tuple(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_key(key, _fields_at(model, key[:-1]), places)
    where = _place(key, places) or file
    if first["type"] == "missing":
        return UsageError(f"{'.'.join(key)} is missing", where=where, remedy="add it")
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "should").replace("Field required", "is required")
    more = f" (and {len(others)} more)" if others else ""
    return UsageError(
        f"{'.'.join(key) or 'config'} = {first['input']!r}: {message}{more}",
        where=where,
        remedy=_described(model, key),
    )


def _described(model: type[BaseModel], key: tuple[str, ...]) -> str:
    fields = _model_at(model, key[:-1])
    field = fields.model_fields.get(key[-1]) if fields and key else None
    return f"{key[-1]}: {field.description}" if field and field.description else ""


def unknown_key(
    key: tuple[str, ...], known: Sequence[str], places: Mapping[tuple[str, ...], str]
) -> UsageError:
    """The error for a key that nothing reads."""
    close = difflib.get_close_matches(key[-1], known, 1)
    guess = ".".join((*key[:-1], close[0])) if close else ""
    listed = "known keys: " + ", ".join(sorted(known))
    return UsageError(
        f"unknown key {'.'.join(key)}",
        where=_place(key, places),
        remedy=f"did you mean {guess}?" if guess else listed,
    )


def _place(key: tuple[str, ...], places: Mapping[tuple[str, ...], str]) -> str:
    """Where the nearest written parent of `key` stands."""
    for end in range(len(key), 0, -1):
        if key[:end] in places:
            return places[key[:end]]
    return ""


def _model_at(model: type[BaseModel], key: tuple[str, ...]) -> type[BaseModel] | None:
    for part in key:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _fields_at(model: type[BaseModel], key: tuple[str, ...]) -> list[str]:
    found = _model_at(model, key)
    return list(found.model_fields) if found else []


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{text!r} is not an override", remedy="write key=value, as in rounds=6")
    path = tuple(key.strip().split("."))
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        parsed = value  # a string that happens to look like broken YAML
    return path, _absolute_value(path, parsed, Path.cwd())


def _set(raw: Mapping[str, Any], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`raw` with the value at `key` replaced, string shorthands opened up on the way."""
    head, *rest = key
    if not rest:
        return {**raw, head: value}
    inner = raw.get(head)
    if isinstance(inner, str) and head in SHORTHAND:
        inner = {SHORTHAND[head]: inner}
    return {**raw, head: _set(inner if isinstance(inner, Mapping) else {}, tuple(rest), value)}


def _absolute(raw: Mapping[str, Any], base: Path, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    return {str(k): _absolute_value((*prefix, str(k)), v, base) for k, v in raw.items()}


def _absolute_value(key: tuple[str, ...], value: Any, base: Path) -> Any:
    """`value` with the paths that `key` is known to hold made absolute, relative to `base`."""
    if key[0] in ("judge", "gold_judge"):
        name = key[-1] if len(key) > 1 else "judge"
        return absolute_judge({name: value}, base)[name]
    if isinstance(value, Mapping):
        return _absolute(value, base, key)
    if not isinstance(value, str):
        return value
    if len(key) == 1 and key[0] in SHORTHAND:
        key = (key[0], SHORTHAND[key[0]])
    if key == ("loop",):
        return absolute_spec(value, base)
    if key == ("teacher",) and value in OWN_TEACHERS:
        return value  # a folder of that name is written ./base
    if key in {
        ("model",),
        ("teacher",),
        ("prompts", "source"),
        ("prompts", "heldout_source"),
        ("chat_template",),
    }:
        written = Path(value).expanduser()
        looks = value.startswith((".", "/", "~")) or (base / written).exists()
        looks = looks or written.suffix in {".jsonl", ".json", ".parquet", ".csv", ".jinja"}
        return str((base / written).resolve()) if looks else value
    return value


def _refuse_secrets(
    value: Any, key: tuple[str, ...], places: Mapping[tuple[str, ...], str]
) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_secrets(inner, (*key, str(name)), places)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _refuse_secrets(inner, (*key, str(number)), places)
    elif isinstance(value, str) and SECRET.search(value):
        raise UsageError(
            f"{'.'.join(key)} holds what looks like a secret key",
            where=SECRET.sub("...", _place(key, places)),
            remedy="name an environment variable that holds it (api_key_env)",
        )
