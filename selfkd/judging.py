"""Which judge scores, with which options, and how many of its failures a run puts up with.

A judge takes options in one of two ways. Either it has a parameter called `options`, annotated
with a pydantic model (`JudgeOptions` is a good base); or its keyword parameters are its options:
those of `__init__` for a class, the keyword-only ones (`def polite(sample, *, floor=0.5)`) for a
function. A parameter called `caller` is no option: it is given what answers the judge's calls.
"""

import difflib
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from selfkd.errors import DataError, UsageError
from selfkd.options import Options
from selfkd.plugins import JudgePlugin, absolute_spec, find_judge
from selfkd.records import Verdict, content_hash

if TYPE_CHECKING:
    from selfkd.judgecalls import Caller

PATHS = ("model", "policy", "python")
"""Options of judges that may be paths."""
OWN = "own"
"""Stands for the policy whose round it is, where a judge says which policy it asks."""
CALLER = "caller"
"""The parameter that a judge takes its caller by."""

FAILURES = ("error", "timeout")
"""Statuses that mean the judge broke; the others that give no reward are judgements."""


class JudgeOptions(Options):
    """Base of a judge's options: frozen, and closed to unknown keys."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge and its options in plain values: all that another process needs to build it."""

    spec: str
    """A built-in or entry-point name, `/absolute/path.py:name` or `module:name`."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def plugin(self) -> JudgePlugin:
        """The judge, imported; UsageError where there is none."""
        return find_judge(self.spec)

    @property
    def name(self) -> str:
        """The name that verdicts carry."""
        return self.plugin.name

    @property
    def gold(self) -> bool:
        """Whether it compares with the reference answer."""
        return self._says("gold")

    @property
    def needs_answer(self) -> bool:
        """Whether every prompt must have a reference answer."""
        return self._says("needs_answer")

    @property
    def sees_answers(self) -> bool:
        """Whether it, or any judge among its options, compares with the reference answer."""
        inner = inner_judges(self.validate())
        return self.gold or self.needs_answer or any(judge.sees_answers for judge in inner)

    @property
    def calls(self) -> bool:
        """Whether it asks a language model, so that it may wait for long."""
        return self._says("calls", self.engine is not None)

    @property
    def engine(self) -> str | None:
        """Which policy of the run answers its calls: `own`, a policy's name, or none of them."""
        said = self._said("engine", OWN if self._takes_caller else None)
        return str(said) if said else None

    @property
    def compares(self) -> bool:
        """Whether it looks at all samples of a prompt together."""
        return self._says("compares")

    @property
    def writes(self) -> bool:
        """Whether its calls make judgements, which a run records as samples."""
        return self.engine is not None and self._says("writes", self._takes_caller)

    @property
    def cacheable(self) -> bool:
        """Whether its verdicts may be kept, and used again by other runs."""
        return self._says("cacheable") and not self.writes

    def identity(self) -> str:
        """Hash of the judge's source and of its options, defaults included."""
        options = self.validate().model_dump(mode="json")
        return content_hash([self.plugin.identity, options])

    def validate(self) -> BaseModel:
        """The options, checked; UsageError names the judge, the option, its value and the range."""
        return self._checked

    def check_ready(self) -> None:
        """UsageError, with the remedy, where the judge cannot run on this machine."""
        if self.plugin.ready:
            self.plugin.ready(self.validate())

    def build(self, caller: "Caller | None" = None) -> Any:
        """The judge with its options bound: an instance of a class, or a function.

        `caller` answers its calls; a judge that takes none never sees it.
        """
        target, arguments = self.plugin.target, self.arguments()
        if self._takes_caller:
            arguments[CALLER] = caller
        if self.plugin.kind == "class":
            return target(**arguments)
        return functools.partial(target, **arguments) if arguments else target

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that carry the options."""
        options = self.validate()
        if _takes_model(self.plugin):
            return {"options": options}
        return {name: getattr(options, name) for name in options.model_fields_set}

    @property
    def _takes_caller(self) -> bool:
        return any(p.name == CALLER for p in _parameters(self.plugin))

    @cached_property
    def _checked(self) -> BaseModel:
        model = options_model(self.plugin)
        known = list(model.model_fields)
        for name in self.options if model.model_config.get("extra") != "allow" else ():
            if name not in known:
                raise _unknown_option(self.name, str(name), known)
        try:
            return model.model_validate(dict(self.options))
        except ValidationError as error:
            raise _wrong_option(self.name, model, error) from error

    def _says(self, what: str, otherwise: bool = False) -> bool:
        return bool(self._said(what, otherwise))

    def _said(self, what: str, otherwise: Any) -> Any:
        said = getattr(self.plugin.target, what, otherwise)
        return said(self.validate()) if callable(said) else said


def absolute_judge(value: Any, base: Path) -> Any:
    """A judge as a config has it, with the files that it and judges inside it name made absolute.

    Judges stand under `use`, `judge` or `judges`. Of the options in `PATHS` those that begin with
    ./, ../ or ~/ are paths; others are left alone.
    """
    if isinstance(value, str):
        return absolute_spec(value, base)
    if isinstance(value, list):
        return [absolute_judge(item, base) for item in value]
    if isinstance(value, Mapping):
        names = ("use", "judge", "judges")
        ways = dict.fromkeys(names, absolute_judge) | dict.fromkeys(PATHS, _absolute_path)
        return {k: ways[k](v, base) if k in ways else v for k, v in value.items()}
    return value


def _absolute_path(value: Any, base: Path) -> Any:
    is_path = isinstance(value, str) and value.startswith(("./", "../", "~/"))
    return str((base / Path(value).expanduser()).resolve()) if is_path else value


def resolve_judge(value: str | Mapping[str, Any] | None, base: Path) -> JudgeSpec:
    """The judge that a config names: `number`, or `{use: number, tolerance: 0.01}`.

    Files are relative to `base`. Nothing is imported yet; `JudgeSpec.validate` does that.
    """
    value = absolute_judge(value, base)
    options = dict(value) if isinstance(value, Mapping) else {"use": value}
    spec = options.pop("use", None)
    if not isinstance(spec, str) or not spec:
        raise UsageError(
            f"{value!r} names no judge",
            remedy="write judge: NAME, or judge: {use: NAME, OPTION: VALUE}",
        )
    return JudgeSpec(spec, options)


def options_doc(plugin: JudgePlugin) -> list[tuple[str, str, Any, str]]:
    """`(name, type, default, documentation)` of each option; a required one has default None."""
    return [
        (
            name,
            _type_text(field.annotation) + (" (required)" if field.is_required() else ""),
            None if field.is_required() else field.get_default(call_default_factory=True),
            field.description or "",
        )
        for name, field in options_model(plugin).model_fields.items()
    ]


def inner_judges(options: BaseModel) -> Iterator[JudgeSpec]:
    """The judges among the options of one that is made of others."""
    for value in dict(options).values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, JudgeSpec):
                yield item


def check_failures(
    count: int, unscored: Mapping[str, int], example: Verdict | None, max_rate: float, total: int
) -> None:
    """DataError if errors and time-outs are more than the share `max_rate` of `total` samples.

    Of the `count` verdicts so far `unscored` counts those without a reward by status, and `example`
    is one that failed; `unparsed`, `refused` and `abstained` are judgements and do not count.
    """
    failed = sum(unscored.get(status, 0) for status in FAILURES)
    if example is None or failed <= max_rate * total:
        return
    raise DataError(
        f"judge {example.judge!r} failed on {failed} of {count} samples ({_listed(unscored)}), "
        f"more than the share {max_rate:g} of {total}; for example {example.rationale}",
        remedy="mend the judge (see `selfkd judge test`) or raise judging.max_failure_rate; on "
        "resume the failed ones are judged again",
    )


def check_scored(
    count: int, unscored: Mapping[str, int], example: Verdict | None, max_share: float, total: int
) -> None:
    """DataError if more than the share `max_share` of `total` samples have no reward.

    Whatever the reason: what is selected among the rest is mostly what the judge could read.
    `example` is one without a reward.
    """
    without = sum(unscored.values())
    if example is None or without <= max_share * total:
        return
    why = f"; for example {example.rationale}"[:300] if example.rationale else ""
    raise DataError(
        f"judge {example.judge!r} gave {without} of {count} samples no reward "
        f"({_listed(unscored)}), more than the share {max_share:g} of {total}{why}",
        remedy="see why with `selfkd judge test`, or raise judging.max_unscored",
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _takes_model(plugin: JudgePlugin) -> bool:
    return any(p.name == "options" and _model_of(plugin, p) for p in _parameters(plugin))


def options_model(plugin: JudgePlugin) -> type[BaseModel]:
    """The pydantic model of a judge's options, its own or one made from its signature."""
    parameters = list(_parameters(plugin))
    for parameter in parameters:
        model = _model_of(plugin, parameter) if parameter.name == "options" else None
        if model:
            return model
    fields: dict[str, Any] = {
        p.name: (_annotation(plugin, p), ... if p.default is p.empty else p.default)
        for p in parameters
        if _is_option(plugin, p)
    }
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    try:
        return create_model(f"options of {plugin.name}", __config__=config, **fields)
    except (PydanticUserError, NameError) as error:
        raise UsageError(
            f"the options of judge {plugin.name!r} cannot be checked: {str(error).splitlines()[0]}",
            where=plugin.source,
            remedy="give its options plain types, such as float, str or list[str]",
        ) from error


def _parameters(plugin: JudgePlugin) -> Iterator[inspect.Parameter]:
    yield from inspect.signature(plugin.target).parameters.values()


def _is_option(plugin: JudgePlugin, parameter: inspect.Parameter) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    if parameter.name == CALLER:
        return False
    if plugin.kind == "class":
        return True
    # In a TRL reward function a keyword without a default is a column of the prompts.
    required = parameter.default is parameter.empty
    return parameter.kind == parameter.KEYWORD_ONLY and not (required and plugin.kind == "trl")


def _model_of(plugin: JudgePlugin, parameter: inspect.Parameter) -> type[BaseModel] | None:
    annotation = _annotation(plugin, parameter)
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _annotation(plugin: JudgePlugin, parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    # One at a time: the sample's type may be imported for type checkers alone.
    try:
        return eval(annotation, vars(sys.modules[plugin.target.__module__]))
    except (NameError, AttributeError) as error:
        raise UsageError(
            f"judge {plugin.name!r}: the type of {parameter.name} cannot be read: {error}",
            where=plugin.source,
            remedy="import what the annotation names",
        ) from error


def _unknown_option(judge: str, name: str, known: Sequence[str]) -> UsageError:
    close = difflib.get_close_matches(name, known, 1)
    listed = "options: " + (", ".join(sorted(known)) or "none")
    return UsageError(
        f"judge {judge!r} has no option {name!r}",
        remedy=f"did you mean {close[0]}? {listed}" if close else listed,
    )


def _wrong_option(judge: str, model: type[BaseModel], error: ValidationError) -> UsageError:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"]]
    description = model.model_fields[names[0]].description if names else ""
    remedy = f"{names[0]}: {description}" if description else ""
    name = ".".join(names)
    if first["type"] == "missing":
        return UsageError(f"judge {judge!r} needs its option {name!r}", remedy=remedy)
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    place = f"option {name} = {first['input']!r}" if name else "options"
    return UsageError(f"judge {judge!r}: {place}: {message}", remedy=remedy)


def _type_text(annotation: Any) -> str:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
