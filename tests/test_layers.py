"""Who may import whom, how long a file may be, and that the command line stays light."""

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "ray",
    "vllm",
    "transformers",
    "datasets",
    "reasoning_gym",
    "matplotlib",
    "trl",
    "peft",
    "math_verify",
    "openai",
    "verifiers",
    "inspect_ai",
}
ENGINE = {"run", "round", "cluster", "launch", "assembly", "sampling", "training"}
READERS = ["metrics", "alarms", "rundir", "repair", "viewer", "tracking"]
LONGEST_FILE = 400
LONGEST_PLUGIN = 120


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("loops", "judges"):
        parts = ("selfkd", *parts)
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {
    module_name(path): path
    for pattern in ("selfkd/*.py", "selfkd/**/*.py", "loops/*.py", "judges/*.py")
    for path in ROOT.glob(pattern)
    if not path.is_relative_to(ROOT / "selfkd" / "loops")
    and not path.is_relative_to(ROOT / "selfkd" / "judges")
}


def imports(module: str, *, at_top: bool = False) -> set[str]:
    """Modules that a module imports, `from a import b` as `a` and, if it is one, `a.b`.

    `at_top`: only what is imported when the module is, so nothing inside functions or for type
    checkers alone.
    """
    tree = ast.parse(SOURCES[module].read_bytes())
    nodes = _at_top(tree.body) if at_top else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            name = node.module or ""
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return {name for name in found if not name.startswith("selfkd.") or name in SOURCES}


def _at_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _at_top(getattr(node, inner, []))


@cache
def reaches(module: str) -> frozenset[str]:
    """Modules of ours that importing a module imports, directly or not."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        for name in imports(todo.pop(), at_top=True):
            if name in SOURCES and name not in seen:
                seen.add(name)
                todo.append(name)
    return frozenset(seen)


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "selfkd"}


def below(package: str) -> list[str]:
    """The modules of a package, or the one module of that name."""
    full = f"selfkd.{package}"
    return [name for name in SOURCES if name == full or name.startswith(full + ".")]


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("records", set()),
        ("errors", set()),
        ("rules", set()),
        ("files", {"selfkd.errors"}),
        ("ledger", {"selfkd.files", "selfkd.records", "selfkd.errors"}),
    ],
)
def test_the_ground_floor_rests_on_nothing_above(module, allowed):
    assert own(imports(f"selfkd.{module}")) <= allowed


def test_the_kernels_can_be_used_alone():
    modules = below("kernels")
    assert modules
    for module in modules:
        others = {name for name in own(imports(module)) if not name.startswith("selfkd.kernels")}
        assert others <= {"selfkd.errors"}, module


@pytest.mark.parametrize("reader", READERS)
def test_what_reads_runs_does_not_need_the_engine(reader):
    modules = below(reader)
    assert modules, f"selfkd.{reader} is gone: adjust READERS"
    for module in modules:
        needed = own(imports(module)) | reaches(module)
        assert not {name for name in needed if name.partition(".")[2].split(".")[0] in ENGINE}


def test_the_process_that_runs_a_loop_imports_no_trainer_and_no_engine():
    for module in below("policies") + below("sampling.pool") + below("run"):
        models = {"selfkd.training.adapters", "selfkd.training.checkpoints", "selfkd.sampling.vllm"}
        assert not reaches(module) & models, module


def test_the_engine_names_no_loop_and_no_judge():
    plugins = {n for n in SOURCES if n.startswith(("selfkd.loops.", "selfkd.judges."))}
    assert plugins
    for module in SOURCES.keys() - plugins:
        assert not imports(module) & plugins, module


@pytest.mark.parametrize("kind", ["loops", "judges"])
def test_plug_ins_use_what_users_can_use(kind):
    public = {"selfkd", "selfkd.judging", "selfkd.judgements", "selfkd.instructions"}
    public |= {"selfkd.sandbox", "selfkd.sandbox.box", "selfkd.sandbox.testing"}
    public |= {"selfkd.classifier", "selfkd.localcalls", "selfkd.models"}
    public |= {"selfkd.served.calls", "selfkd.served.options", "selfkd.prompts.tasksets"}
    public |= {"selfkd.errors"}
    public |= {"selfkd.judgecalls", "selfkd.judgeprompts", "selfkd.nested", "selfkd.contests"}
    public |= {"selfkd.contests", "selfkd.judgecalls", "selfkd.judgeprompts", "selfkd.nested"}
    public |= {f"selfkd.{kind}"}
    for module in below(kind):
        used = own(imports(module))
        extra = {name for name in used - public if not name.startswith(f"selfkd.{kind}.")}
        assert not extra, f"{module} imports {sorted(extra)}"


def test_heavy_packages_are_imported_where_they_are_used():
    for module in SOURCES:
        if not module.startswith(("selfkd.training.", "selfkd.sampling.", "selfkd.kernels.")):
            heavy = {name.split(".")[0] for name in imports(module, at_top=True)} & HEAVY
            assert not heavy, f"{module} imports {sorted(heavy)} at its top"


def test_files_stay_short_and_are_named_for_what_they_do():
    for module, path in SOURCES.items():
        lines = len(path.read_text().splitlines())
        plugin = module.startswith(("selfkd.loops.", "selfkd.judges."))
        limit = LONGEST_PLUGIN if plugin else LONGEST_FILE
        assert lines <= limit, f"{path} has {lines} lines, more than {limit}"
        assert not {"utils", "common", "helpers", "misc"} & set(module.split("."))


def loaded_by(code: str) -> tuple[set[str], float]:
    """Heavy modules that a fresh interpreter has loaded after `code`, and the seconds it took."""
    report = f"import json, sys; print(json.dumps(sorted({HEAVY!r} & sys.modules.keys())))"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1])), time.monotonic() - started


def test_importing_the_package_and_its_public_names_is_light():
    heavy, _ = loaded_by("import selfkd; [getattr(selfkd, name) for name in selfkd.__all__]")
    assert heavy == set()


def test_the_public_names_are_what_they_say():
    import selfkd

    assert {n for n in selfkd.__all__ if getattr(selfkd, n).__class__.__name__ == "module"} == set()
    assert set(selfkd.__all__) <= set(dir(selfkd))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        selfkd.nonsense  # noqa: B018


def test_a_driver_loads_no_torch(tiny_model):
    """It would take five seconds and hundreds of megabytes of every command that runs a loop."""
    config = {
        "loop": "rest_em",
        "model": str(tiny_model),
        "judge": "number",
        "prompts": {"source": "reasoning_gym:chain_sum"},
        "engine": {"kind": "transformers"},
    }
    code = f"""
import selfkd.round, selfkd.policies, selfkd.sampling.pool, selfkd.judgepool, selfkd.trainers
from selfkd.assembly import prepare
from selfkd.config import resolve
assert prepare(resolve({config!r}))
"""
    heavy, _ = loaded_by(code)
    assert "torch" not in heavy and "vllm" not in heavy


def test_help_is_light_and_quick():
    code = """
import contextlib
from selfkd.cli import app
with contextlib.suppress(SystemExit):
    app(["--help"])
"""
    heavy, seconds = loaded_by(code)
    print(f"selfkd --help: {seconds:.2f} s")
    assert heavy == set()
    assert seconds < 5  # half a second on an idle machine; this only catches a heavy import
