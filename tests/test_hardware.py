"""What is read off a machine: the memory of a cgroup, and who multiplies best on its processor."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from selfkd import hardware
from selfkd.hardware import (
    GIB,
    FreedMemory,
    available_gib,
    memory_gib,
    prefers_onednn,
    trains_by_onednn,
)
from selfkd.kernels.products import by_onednn

mkldnn: Any = torch.backends.mkldnn

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
STAT = "anon 100\nfile 700\n{0}inactive_file 300\n{0}active_file 200\n"


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "_meminfo", {"MemTotal": 64.0, "MemAvailable": 50.0}.get)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "limit", "used", "kind"),
    [
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_a_cgroup_has_what_its_limit_leaves(
    cgroup: Path, folder: str, limit: str, used: str, kind: str
) -> None:
    place = cgroup / folder
    place.mkdir(exist_ok=True)
    (place / limit).write_text(f"{8 * GIB}\n")
    (place / used).write_text(f"{5 * GIB}\n")
    (place / "memory.stat").write_text(STAT.format(kind))
    assert memory_gib() == 8.0
    assert available_gib() == pytest.approx(3 + 500 / GIB, abs=1e-12)  # copies of files make room


def test_a_cgroup_without_limit_is_the_whole_machine(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text(f"{5 * GIB}\n")
    assert (memory_gib(), available_gib()) == (64.0, 50.0)


def test_a_limit_beyond_the_machine_frees_nothing(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text(f"{100 * GIB}\n")
    (cgroup / "memory.current").write_text("0\n")
    assert (memory_gib(), available_gib()) == (64.0, 50.0)


def test_memory_goes_back_to_the_system_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back = Mock()
    monkeypatch.setattr(hardware, "memory_gib", lambda: 8.0)
    monkeypatch.setattr(hardware, "trim_memory", given_back.c_library)
    freed = FreedMemory(given_back.kernels)
    for free, held, calls in ((2.1, 1.0, 0), (1.9, 1.0, 1), (2.1, 1.4, 1), (2.1, 1.6, 2)):
        monkeypatch.setattr(hardware, "available_gib", lambda free=free: free)
        monkeypatch.setattr(hardware, "resident_gib", lambda held=held: held)
        freed.settle()
        assert given_back.c_library.call_count == given_back.kernels.call_count == calls


def test_products_stay_in_float32_where_onednn_is_preferred() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 512), torch.randn(512, 256)
    exact = a.double() @ b.double()
    with by_onednn(prefers_onednn()):
        product = a @ b
    # Factors rounded to bfloat16 would be off by 1e-2.
    assert (product - exact).abs().max() / exact.abs().mean() < 2e-5


@pytest.mark.parametrize(
    ("told", "preferred"),
    [
        (AMD, True),
        (AMD.replace("avx512_bf16", "amx_bf16"), False),
        (AMD.replace("avx512", "sse"), False),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), False),
        ("", False),
    ],
)
def test_onednn_is_preferred_only_where_it_is_faster_and_does_not_round(
    monkeypatch: pytest.MonkeyPatch, told: str, preferred: bool
) -> None:
    lines = {line.partition("\t")[0]: line for line in told.splitlines()}
    monkeypatch.setattr(hardware, "_cpu", lambda key: lines.get(key, ""))
    assert prefers_onednn() is preferred


@pytest.mark.parametrize(
    ("gpu", "preferred", "narrow", "wide"),
    [(False, False, True, False), (False, True, True, True), (True, True, False, False)],
)
def test_a_training_is_onednns_by_its_dtype(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, preferred: bool, narrow: bool, wide: bool
) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: gpu)
    monkeypatch.setattr(hardware, "prefers_onednn", lambda: preferred)
    assert (trains_by_onednn("bfloat16"), trains_by_onednn("float32")) == (narrow, wide)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_choice_of_products_ends_with_its_block(wanted: bool) -> None:
    settings: Any = mkldnn.matmul
    before = settings.fp32_precision
    with pytest.raises(KeyError), by_onednn(wanted):
        assert settings.fp32_precision == ("bf16" if wanted else before)
        raise KeyError
    assert settings.fp32_precision == before != "bf16"
