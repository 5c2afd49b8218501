"""Finds loops and judges by built-in name, entry point, `path.py:name` or `module:name`."""

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from selfkd.errors import UsageError
from selfkd.records import content_hash
from selfkd.siblings import own_files

Kind = Literal["loop", "judge"]
JudgeKind = Literal["function", "async", "class", "trl"]

Said = bool | Callable[[Any], bool] | None
"""What a judge says of itself: yes, no, nothing, or a function of its options."""
Engine = str | Callable[[Any], str | None] | None
"""Which policy a judge asks: `own` (the round's), a policy's name, none, or a function of its
options."""

T = TypeVar("T")

_MARK = "__selfkd__"


@dataclass(frozen=True, slots=True)
class _Mark:
    kind: Kind
    name: str
    paper: str = ""
    options: type | None = None
    ready: Callable[[Any], None] | None = None


def loop(name: str, *, paper: str = "", options: type | None = None) -> Callable[[T], T]:
    """Register a loop `f(run, options)`.

    The options class is the annotation of the second parameter unless `options` names it.
    """
    return _marker(_Mark("loop", name, paper, options))


def judge(
    name: str,
    *,
    gold: Said = None,
    needs_answer: Said = None,
    calls: Said = None,
    engine: Engine = None,
    writes: Said = None,
    compares: Said = None,
    ready: Callable[[Any], None] | None = None,
    cacheable: Said = None,
) -> Callable[[T], T]:
    """Register a judge function or class under a name of its own.

    `gold`: it compares with the reference answer. `needs_answer`: prompts without one are refused
    before the run starts. `calls`: it asks a language model (`selfkd.judgecalls`), so it may wait
    long. `engine`: which policy of the run it asks. `writes`: what it is told are judgements that a
    run records. `compares`: it looks at all samples of a prompt together. `cacheable`: its verdicts
    cost so much that they are kept for good; they depend on what it is shown of the prompt and the
    completion (of all completions, if it compares), and not on ids, tokens or policies. `ready` is
    called with the options before a run starts, and again where the judge starts; it raises
    UsageError with the remedy where something that the judge needs is not there.

    A judge with a parameter `caller` calls, asks the round's own policy and writes, unless it says
    otherwise. A class may say all of these but `ready` as class variables instead.
    """
    said: dict[str, Any] = {"gold": gold, "needs_answer": needs_answer, "calls": calls}
    said |= {"engine": engine, "writes": writes, "compares": compares, "cacheable": cacheable}
    mark = _Mark("judge", name, ready=ready)
    return _marker(mark, **{k: v for k, v in said.items() if v is not None})


def _marker(mark: _Mark, **attributes: Any) -> Callable[[T], T]:
    def decorate(target: T) -> T:
        for key, value in {_MARK: mark, **attributes}.items():
            setattr(target, key, value)
        return target

    return decorate


def _mark_of(target: object, kind: Kind) -> _Mark | None:
    # Not getattr: a class must not inherit the name of the judge it derives from.
    mark = getattr(target, "__dict__", {}).get(_MARK)
    return mark if isinstance(mark, _Mark) and mark.kind == kind else None


@dataclass(frozen=True, slots=True)
class LoopPlugin:
    """A loop that was found; `spec` finds it again from any process and working directory."""

    name: str
    spec: str
    fn: Callable[..., Any]
    options: type
    paper: str
    doc: str
    source: str
    identity: str
    """Hash of the name and of the source: its file, and those it imports from the same folder."""


@dataclass(frozen=True, slots=True)
class JudgePlugin:
    """A judge that was found; `spec` finds it again from any process and working directory."""

    name: str
    spec: str
    target: Callable[..., Any]
    kind: JudgeKind
    doc: str
    source: str
    identity: str
    """Hash of the name and of the source: its file, and those it imports from the same folder;
    options are not part of it."""
    ready: Callable[[Any], None] | None = None
    """Raises UsageError where the judge, with the given options, cannot run on this machine."""


def find_loop(spec: str) -> LoopPlugin:
    """Import the loop that `spec` names, and nothing else."""
    found = _find("loop", spec)
    mark = _mark_of(found.target, "loop")
    if not callable(found.target):
        raise UsageError(f"loop {spec!r} is not a function", where=found.source)
    fn: Callable[..., Any] = found.target
    options = (mark and mark.options) or _second_annotation(found)
    paper = mark.paper if mark else ""
    return LoopPlugin(found.name, found.spec, fn, options, paper, *found.description())


def find_judge(spec: str) -> JudgePlugin:
    """Import the judge that `spec` names, and nothing else."""
    found = _find("judge", spec)
    kind = _judge_kind(found)
    mark = _mark_of(found.target, "judge")
    ready = mark.ready if mark else None
    return JudgePlugin(found.name, found.spec, found.target, kind, *found.description(), ready)


def list_plugins(kind: Kind) -> list[tuple[str, str, str]]:
    """`(name, first line of its documentation, source)` of every installed plug-in, unimported."""
    rows = [(name, _first_line(path), str(path)) for name, path in _built_in(kind).items()]
    for point in _entry_points(kind):
        origin = point.dist.name if point.dist else "another package"
        rows.append((point.name, f"from {origin}", point.value))
    return sorted(rows)


def absolute_spec(spec: str, base: Path | None = None) -> str:
    """`spec` with the file of a `path.py:name` made absolute, relative to `base` (default: cwd)."""
    place, colon, name = spec.rpartition(":")
    if not colon or not _is_path(place):
        return spec
    return f"{((base or Path.cwd()) / Path(place).expanduser()).resolve()}:{name}"


@dataclass(frozen=True, slots=True)
class _Found:
    kind: Kind
    name: str
    spec: str
    target: Any
    module: ModuleType

    @property
    def source(self) -> str:
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.target))
        except TypeError:  # an instance or a partial has no file of its own
            file = None
        return file or getattr(self.module, "__file__", None) or self.module.__name__

    def description(self) -> tuple[str, str, str]:
        """Documentation, source path and identity."""
        doc = inspect.getdoc(self.target) if inspect.isroutine(self.target) else None
        if isinstance(self.target, type):
            doc = self.target.__doc__
        path, package = Path(self.source), self.module.__package__ or ""
        files = own_files(path, package) if path.is_file() else []
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        name = self.spec.rpartition(":")[2]
        text = inspect.cleandoc(doc or self.module.__doc__ or "")
        return text, self.source, content_hash([digest, name])


def _find(kind: Kind, spec: str) -> _Found:
    place, colon, attribute = spec.rpartition(":")
    if colon and _is_path(place):
        spec = absolute_spec(spec)
        path = Path(spec.rpartition(":")[0])
        found = _pick(kind, _import_file(path), attribute, spec)
        return (
            found if _mark_of(found.target, kind) else _renamed(found, f"{path.name}:{attribute}")
        )
    if colon:
        return _pick(kind, _import_module(place, spec), attribute, spec)
    if spec in _built_in(kind):
        return _pick(kind, importlib.import_module(f"selfkd.{kind}s.{spec}"), spec, spec)
    for point in _entry_points(kind):
        if point.name == spec:
            found = _pick(kind, _import_module(point.module, spec), point.attr, spec)
            return _renamed(found, spec)
    raise _unknown(kind, spec)


def _renamed(found: _Found, name: str) -> _Found:
    return _Found(found.kind, name, found.spec, found.target, found.module)


def _pick(kind: Kind, module: ModuleType, name: str, spec: str) -> _Found:
    """The object of `module` that is registered under `name`, or simply called so."""
    for target in vars(module).values():
        mark = _mark_of(target, kind)
        if mark and mark.name == name:
            return _Found(kind, name, spec, target, module)
    target = getattr(module, name, None)
    if target is not None:
        mark = _mark_of(target, kind)
        return _Found(kind, mark.name if mark else name, spec, target, module)
    names = sorted(_public_names(kind, module))
    raise UsageError(
        f"no {kind} {name!r} in {module.__file__ or module.__name__}",
        remedy=_suggestion(name, names),
    )


def _public_names(kind: Kind, module: ModuleType) -> Iterator[str]:
    for name, target in vars(module).items():
        mark = _mark_of(target, kind)
        if mark:
            yield mark.name
        elif callable(target) and getattr(target, "__module__", "") == module.__name__:
            yield name


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name that only depends on where it lies."""
    try:
        source = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot read the plug-in file: {reason}", where=str(path), remedy="check the path"
        ) from error
    name = f"selfkd_plugin_{path.stem}_{content_hash(str(path), 8)}"
    digest = hashlib.sha256(source).hexdigest()
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__selfkd_digest__", "") == digest:
        return module
    return _execute(name, path, source, digest)


def _execute(name: str, path: Path, source: bytes, digest: str) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that its files shadow nothing
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__selfkd_digest__"] = digest
    sys.modules[name] = module  # dataclasses and pydantic look their module up while it runs
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):
            raise _import_failed(error, str(path)) from error
        raise
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _import_failed(error, spec) from error


def _import_failed(error: BaseException, where: str) -> UsageError:
    if isinstance(error, SyntaxError) and error.lineno:
        where = f"{error.filename}:{error.lineno}"
    return UsageError(
        f"the plug-in cannot be imported: {type(error).__name__}: {error}",
        where=where,
        remedy="fix the error or install what is missing",
    )


def _built_in(kind: Kind) -> dict[str, Path]:
    package = importlib.import_module(f"selfkd.{kind}s")
    folder = Path(package.__path__[0])
    names = (m.name for m in pkgutil.iter_modules(package.__path__))
    return {name: folder / f"{name}.py" for name in names if not name.startswith("_")}


def _entry_points(kind: Kind) -> list[EntryPoint]:
    return list(entry_points(group=f"selfkd.{kind}s"))


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    return doc.partition("\n")[0]


def _unknown(kind: Kind, spec: str) -> UsageError:
    if _is_path(spec):
        return UsageError(f"{spec!r} names a file but no {kind} in it", remedy=f"write {spec}:NAME")
    names = [name for name, _, _ in list_plugins(kind)]
    return UsageError(
        f"unknown {kind} {spec!r}",
        remedy=f"{_suggestion(spec, names)}; or give path.py:name or module:name",
    )


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    listed = "there are: " + (", ".join(names) or "none")
    return f"did you mean {close[0]!r}? {listed}" if close else listed


def _second_annotation(found: _Found) -> type:
    parameters = list(inspect.signature(found.target).parameters.values())
    annotation = parameters[1].annotation if len(parameters) > 1 else None
    if isinstance(annotation, str):
        # Only this one: the first may name types that are imported for type checkers alone.
        annotation = eval(annotation, inspect.unwrap(found.target).__globals__)
    if not isinstance(annotation, type) or annotation is inspect.Parameter.empty:
        raise UsageError(
            f"loop {found.name!r} does not say its options class",
            where=found.source,
            remedy="annotate its second parameter: def loop(run: Run, options: MyOptions)",
        )
    return annotation


def _judge_kind(found: _Found) -> JudgeKind:
    target = found.target
    if isinstance(target, type):
        if callable(getattr(target, "judge", None)):
            return "class"
    elif callable(target):
        if "completions" in inspect.signature(target).parameters:
            return "trl"
        call = target if inspect.isroutine(target) else type(target).__call__
        return "async" if inspect.iscoroutinefunction(call) else "function"
    raise UsageError(
        f"{found.name!r} is not a judge but a {type(target).__name__}",
        where=found.source,
        remedy="give a function of one sample, a class with judge(samples), or a TRL reward "
        "function",
    )
