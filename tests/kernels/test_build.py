"""How the compiled path is built, kept, and done without."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfkd.errors import UsageError
from selfkd.kernels import KINDS, backends, build, cpu
from tests.kernels.cases import errors, random_case


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has not looked for the compiled path yet, with an empty cache."""
    monkeypatch.setenv("SELFKD_KERNEL_CACHE", str(tmp_path / "kernels"))
    for cached in (cpu.library, backends._warn, backends._say):
        cached.cache_clear()
    yield tmp_path / "kernels"
    cpu.library.cache_clear()


def needs(*flags: str) -> None:
    missing = sorted({*build.NEEDED, *flags} - build.cpu_flags())
    if missing:
        pytest.skip(f"this CPU lacks {missing}")


def test_it_is_built_once_and_found_again(fresh, monkeypatch):
    needs()
    build.load()
    (library,) = fresh.glob("*.so")
    made = library.stat().st_mtime_ns

    def no_compiler(*args: object, **kwargs: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build.subprocess, "run", no_compiler)
    build.load()
    assert library.stat().st_mtime_ns == made
    assert not list(fresh.glob("tmp*"))


def test_the_key_depends_on_source_torch_and_cpu(monkeypatch, tmp_path):
    before = build._key("g++")
    assert build._key("g++") == before != build._key("clang++")
    monkeypatch.setattr(torch, "__version__", "0.0")
    other_torch = build._key("g++")
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"avx2"}))
    other_cpu = build._key("g++")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert len({before, other_torch, other_cpu, build._key("g++")}) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda patch, folder: patch.setattr(build, "cpu_flags", frozenset), "lacks avx2"),
        (lambda patch, folder: patch.setenv("CXX", str(folder / "nothing")), "no C\\+\\+ compiler"),
        (lambda patch, folder: patch.setenv("CXX", "false"), "false failed"),
    ],
)
def test_without_it_torch_runs_and_says_so_once(fresh, monkeypatch, caplog, change, words):
    needs()
    case = random_case(dtype=torch.float32)
    expected, _ = case.dense(backend="torch")
    change(monkeypatch, fresh)
    with caplog.at_level(logging.WARNING, "selfkd.kernels"):
        first, _ = case.dense()
        case.dense()
    assert first.backend == "torch" and torch.equal(first.loss, expected.loss)
    assert len(caplog.records) == 1 and "runs in torch" in caplog.text
    with pytest.raises(UsageError, match=words):
        case.dense(backend="cpu")


def test_a_file_that_is_no_library_is_not_fatal(fresh, monkeypatch):
    needs()
    monkeypatch.setattr(build, "_key", lambda compiler: "broken")
    fresh.mkdir()
    (fresh / "broken.so").write_text("not a library")
    assert "broken.so cannot be made or loaded" in str(cpu.library())


def test_auto_takes_the_compiled_path_where_there_is_one(caplog):
    needs()
    backends._say.cache_clear()
    with caplog.at_level(logging.INFO, "selfkd.kernels"):
        assert random_case(dtype=torch.float32).dense()[0].backend == "cpu"
        assert random_case(dtype=torch.bfloat16).dense()[0].backend == "cpu"
        assert random_case(dtype=torch.float64).dense()[0].backend == "torch"
        random_case(dtype=torch.float32).dense()
    assert len(caplog.records) == 3


def test_a_cpu_without_bfloat16_widens_it(fresh, monkeypatch):
    needs(*build.PRODUCTS)
    flags = frozenset({*build.NEEDED, *build.PRODUCTS})
    monkeypatch.setattr(build, "cpu_flags", lambda: flags)
    monkeypatch.setattr(cpu, "cpu_flags", build.cpu_flags)
    _agrees_in_bfloat16()


def test_without_avx512_rows_are_compiled_and_torch_multiplies(fresh, monkeypatch):
    needs()
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset(build.NEEDED))
    assert not hasattr(cpu.library(), "selfkd_project")
    _agrees_in_bfloat16()
    case = random_case(tokens=40, vocabulary=515, dtype=torch.float32)
    exact = case.to(torch.float64)
    ids, logprobs = case.top(5)
    for kind in KINDS:
        truth, got = (
            c.dense(backend=b, kind=kind) for c, b in ((exact, "reference"), (case, "cpu"))
        )
        assert got[0].backend == "cpu"
        assert max(errors(got, truth).values()) < (1e-4 if kind == "tvd" else 1e-5), kind
        truth = exact.sparse(ids, logprobs, backend="reference", kind=kind)
        got = case.sparse(ids, logprobs.float(), backend="cpu", kind=kind)
        assert max(errors(got, truth).values()) < (1e-4 if kind == "tvd" else 1e-5), kind


def _agrees_in_bfloat16() -> None:
    case = random_case(dtype=torch.bfloat16, tokens=40)
    got, gradients = case.dense(backend="cpu")
    truth, true = case.to(torch.float64).dense(backend="reference")
    assert got.loss.item() == pytest.approx(truth.loss.item(), rel=1e-6)
    assert gradients[1].dtype == torch.bfloat16
    assert (gradients[1].double() - true[1]).norm() / true[1].norm() < 1e-2


def test_it_stands_alone():
    """Nothing else of selfkd is loaded, and nothing heavy but torch."""
    code = "import sys, selfkd.kernels; print([m for m in sys.modules if m.startswith('selfkd')])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    loaded = {name for name in eval(done.stdout) if not name.startswith("selfkd.kernels")}
    assert loaded == {"selfkd", "selfkd.errors"}
