"""What the kernel benchmarks compute apart from clocks: candidates, arithmetic, verdicts."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def test_all_candidates_compute_the_same_loss():
    import kernel_gpu
    import peers

    x = peers.make_inputs(24, 16, 96, torch.float32)
    runs = peers.candidates(x) | {"torch dense": lambda: kernel_gpu.plain_torch(x)}
    runs.pop("Liger", None)  # compiles for half a minute; tests/kernels/test_peers.py has it
    truth = peers.true_loss(x)
    assert 0.001 < truth < 0.03
    for name, run in runs.items():
        loss = run()
        if name.startswith("floor"):
            assert loss is None
        elif name != "ours shared":
            assert loss is not None and loss.item() == pytest.approx(truth, rel=1e-3), name


def test_ratios_are_taken_turn_by_turn():
    import kernel
    import peers

    seconds = {"floor": [1.0, 10.0, 2.0], "ours": [1.2, 13.0, 2.2], "ours frozen": [0.9, 9.0, 1.9]}
    seconds |= {"TRL dense": [4.0, 40.0, 8.0]}
    assert peers.ratio(seconds, "ours", "floor") == pytest.approx(1.2)
    lines = kernel.targets("bf16", 2048, seconds)
    assert [line.split()[-1] for line in lines] == ["pass", "pass", "MISS"]
    assert kernel.targets("bf16", 512, seconds) == []
    left = {"floor": seconds["floor"], "ours": seconds["ours"]}  # --without all others
    assert kernel.targets("bf16", 2048, left) == lines[:1]
    assert kernel.targets("bf16", 2048, {"TRL dense": [1.0]}) == []
    added = {"ours": [2**28 + 2**27, 2**30]}
    limits = kernel.memory_targets(added, [2048, 4096], 576, 49152, "bf16")
    # Two chunks alone are 255.75 MiB; each size is held to that, and to the wider limit.
    assert [line.split()[-1] for line in limits] == ["MISS", "pass", "MISS", "MISS"]
    assert "(two chunks)" in limits[0] and "target <= 255.75" in limits[0]
    lean = kernel.memory_targets({"ours": [2**28, 2**28]}, [2048, 4096], 576, 49152, "bf16")
    assert [line.split()[-1] for line in lean] == ["pass"] * 4


def test_the_cpu_benchmark_judges_loss_and_gradients(monkeypatch, capsys):
    import kernel

    lines = kernel.accuracy_targets("fp32", 512, (9e-6, 3.2e-5))
    lines += kernel.accuracy_targets("bf16", 512, (2e-3, 9e-3))
    assert [line.split()[-1] for line in lines] == ["pass", "MISS", "MISS", "pass"]
    monkeypatch.setattr(
        "sys.argv",
        ["kernel.py", "--quick", "--no-memory", "--without", "TRL dense", "TRL chunked", "Liger"],
    )
    kernel.main()
    _, _, told = capsys.readouterr().out.partition("targets")
    judged = [line for line in told.splitlines() if "error of the" in line]
    assert len(judged) == 2 * 2 * 2  # what of, dtypes, sizes
    assert all(line.endswith("pass") for line in judged)


def test_a_step_is_timed_with_the_rounding_that_a_training_does(tiny_model, tmp_path, monkeypatch):
    import gkd_step

    from selfkd.records import Example
    from selfkd.training import rounding

    plain, rounded = rounding.Rounding.__call__, []

    def noted(self, tensors):
        rounded.append(len(tensors))
        return plain(self, tensors)

    monkeypatch.setattr(rounding.Rounding, "__call__", noted)
    batch = [Example(f"e{i}", f"p{i}", (), (5, 6, 7), (8, 9, 10 + i)) for i in range(2)]
    teacher = gkd_step.drifted(tiny_model)
    step = gkd_step.ours(tiny_model, teacher, batch, tmp_path)
    losses = [step() for _ in range(3)]
    assert rounded == [len(list(teacher.parameters()))] * 3
    assert losses[-1] < losses[0]


def test_the_gpu_benchmark_refuses_a_machine_without_one_but_not_arithmetic(monkeypatch, capsys):
    import kernel_gpu

    monkeypatch.setattr("sys.argv", ["kernel_gpu.py", "--roofline"])
    kernel_gpu.main()
    assert "four products" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["kernel_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        kernel_gpu.main()


def test_the_gpu_arithmetic():
    from kernel_gpu import Sizes, chunk_memory, gradient_bytes, operations, roofline, targets

    sizes = Sizes(8192, 4096, 131072)
    assert sizes.chunk == 512
    figures = roofline(sizes)
    assert figures["four products"] == pytest.approx(4 * 2 * 2**13 * 2**12 * 2**17 / 790e9)
    assert figures["row kernel"] == pytest.approx(14 * 2**30 / 3.35e9)
    assert sum(chunk_memory(sizes).values()) < 1e9
    assert operations("ours frozen", sizes) * 4 == operations("ours", sizes) * 3
    assert gradient_bytes("ours", sizes) - gradient_bytes("ours frozen", sizes) == 2 * 2**29
    seconds = {"floor": [1.0], "ours": [1.2], "Liger": [1.5], "Liger fused": [2.0]}
    lines = targets(seconds, {"ours": int(1.2e9), "ours frozen": int(0.9e9)})
    assert [line.split()[-1] for line in lines] == ["pass", "MISS", "pass", "pass", "MISS"]


def test_the_gpu_benchmark_holds_every_kind_against_float64(capsys):
    from kernel_gpu import check

    assert check(16, 96, "cpu") == []
    assert len(capsys.readouterr().out.splitlines()) == 12
