"""What is built holds loops and judges under selfkd, and says what it needs."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
APART = ("gpu", "verifiers", "inspect")
"""Extras that are not installed together with the others, so that nothing of theirs is pinned."""
DATA = (".py", ".yaml", ".txt", ".js", ".css", ".html", ".cpp", ".h")


def build(source: Path, out: Path, *kinds: str) -> None:
    """Build without isolation, so that no network is needed."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel of a clean copy of this tree."""
    folder = tmp_path_factory.mktemp("built")
    names = (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
        "selfkd",
        "loops",
        "judges",
        "tests",
    )
    (folder / "tree").mkdir()
    for name in names:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, folder / "tree" / name)
        else:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "tree" / name, symlinks=True, ignore=ignore)
    build(folder / "tree", folder, "--sdist", "--wheel")
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {n: archive.read(n) for n in archive.namelist() if not n.endswith("RECORD")}


def test_the_wheel_holds_everything_and_only_under_selfkd(built):
    wheel = contents(next(built.glob("*.whl")))
    info = f"selfkd-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel} == {"selfkd", info}
    wanted = {"selfkd/py.typed"}
    for folder, pattern in (("selfkd", "*"), ("selfkd", "**/*"), ("loops", "*"), ("judges", "*")):
        for path in (ROOT / folder).glob(pattern):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in DATA:
                wanted.add(name if folder == "selfkd" else f"selfkd/{name}")
    assert {"selfkd/loops/rest_em.py", "selfkd/loops/rest_em.yaml"} <= wanted
    assert "selfkd/judges/number.py" in wanted
    assert wanted <= wheel.keys(), sorted(wanted - wheel.keys())
    assert "selfkd = selfkd.cli:main" in wheel[f"{info}/entry_points.txt"].decode()
    assert b"Apache License" in wheel[f"{info}/licenses/LICENSE"]
    assert b"Mike Bostock" in wheel[f"{info}/licenses/NOTICE"]
    vendored = "selfkd/viewer/web/static/vendor"
    for name in ("d3.min.js", "d3.LICENSE.txt", "plot.min.js", "plot.LICENSE.txt"):
        assert f"{vendored}/{name}" in wheel


def test_the_wheel_of_the_sdist_is_the_same(built, tmp_path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    build(next(tmp_path.iterdir()), tmp_path / "out", "--wheel")
    assert contents(next((tmp_path / "out").glob("*.whl"))) == contents(next(built.glob("*.whl")))


def declared(*extras: str) -> set[str]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}


def test_every_imported_package_is_declared():
    homes = importlib.metadata.packages_distributions()
    allowed = declared("cpu", "gpu", "tasks", "models", "tensorboard")
    allowed |= declared("teacher", "verifiers", "inspect")
    for path in (p for f in ("selfkd", "loops", "judges") for p in (ROOT / f).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {n.split(".")[0] for n in names} - sys.stdlib_module_names - {"selfkd"}:
                found = {canonicalize_name(home) for home in homes.get(name, [name])}
                assert found & allowed, f"{path} imports {name}, which pyproject.toml does not name"


def test_the_constraints_pin_every_direct_dependency_within_its_bounds():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(len(pin.specifier) == 1 and pin.url is None for pin in pins)
    version = {canonicalize_name(p.name): next(iter(p.specifier)).version for p in pins}
    texts = [*PROJECT["dependencies"]]
    for extra, more in PROJECT["optional-dependencies"].items():
        # What these trackers bring (pandas, protobuf) is older than what vLLM and Ray brought here.
        texts += more if extra not in {*APART, "trackio", "mlflow"} else []
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        if name != "setuptools":  # each vllm wants one of its own
            assert requirement.specifier.contains(version[name]), f"{requirement} is not pinned"


def test_loops_and_judges_refuse_to_be_imported_bare():
    for name in ("loops", "judges"):
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 1 and f"import this package as selfkd.{name}" in done.stderr
