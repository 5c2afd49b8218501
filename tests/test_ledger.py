"""Steps are durable: whole shards or none, replay without work, refusal of what changed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.ledger import Ledger


def table(*values: int) -> pa.Table:
    return pa.table({"x": list(values)})


def finished_step(run: Path, args: dict[str, object]):
    step = Ledger(run).step(0, "generate", "", args)
    step.write(0, table(1, 2))
    step.write(1, table(3))
    step.finish({"rows": 3})
    return step


def test_a_finished_step_is_replayed_from_disk(tmp_path):
    finished_step(tmp_path, {"n": 2})
    again = Ledger(tmp_path).step(0, "generate", "", {"n": 2})
    assert again.finished and again.summary == {"rows": 3}
    assert [t.column("x").to_pylist() for t in again.tables()] == [[1, 2], [3]]


def test_changed_arguments_are_refused_with_what_differs(tmp_path):
    finished_step(tmp_path, {"n": 2, "policy": "base"})
    with pytest.raises(UsageError, match=r"n: 2 -> 3.*selfkd fork .* --round 0") as error:
        Ledger(tmp_path).step(0, "generate", "", {"n": 3, "policy": "base"})
    assert "policy" not in error.value.message
    assert Ledger(tmp_path).step(0, "generate", "", {"n": 2, "policy": "base"}).finished


def test_another_order_of_verbs_is_refused(tmp_path):
    finished_step(tmp_path, {})
    with pytest.raises(
        UsageError, match="recorded step 01-generate, but the loop now asks for 01-keep"
    ):
        Ledger(tmp_path).step(0, "keep", "", {})


def test_inherited_rounds_are_taken_as_they_are(tmp_path):
    step = finished_step(tmp_path, {"n": 2})
    again = Ledger(tmp_path, inherited=0).step(0, "generate", "", {"n": 99})
    assert again.finished and again.fingerprint == step.fingerprint


def test_an_unfinished_step_continues_at_the_first_missing_shard(tmp_path):
    step = Ledger(tmp_path).step(0, "generate", "", {})
    step.write(1, table(3))
    before = step.shard_path(1).read_bytes()
    again = Ledger(tmp_path).step(0, "generate", "", {})
    assert not again.finished and again.shards() == [1] and not again.has(0)
    again.write(0, table(1))
    again.finish({})
    assert again.shard_path(1).read_bytes() == before
    assert [s["rows"] for s in again.manifest["shards"]] == [1, 1]  # type: ignore[index]


def test_what_a_shard_held_before_stays_beside_it_once(tmp_path, monkeypatch):
    step = Ledger(tmp_path).step(0, "judge", "", {})
    for values in ([1], [1], [2]):
        step.write(0, table(*values))
    with monkeypatch.context() as patch:  # killed after the former was put aside
        patch.setattr("selfkd.ledger.write_atomically", only_aside)
        with pytest.raises(KeyboardInterrupt):
            step.write(0, table(3))
    again = Ledger(tmp_path).step(0, "judge", "", {})
    again.write(0, table(4))
    again.finish({})
    held = {p.name: pq.read_table(p).column("x").to_pylist() for p in step.path.glob("0*")}
    assert held == {"00000.parquet": [4], "00000.parquet.1": [1], "00000.parquet.2": [2]}
    assert [s["rows"] for s in again.manifest["shards"]] == [1]  # type: ignore[index]


def only_aside(path: Path, data: bytes) -> None:
    if path.suffix == ".parquet":
        raise KeyboardInterrupt
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_named_and_never_used(tmp_path, damage):
    path = finished_step(tmp_path, {}).shard_path(1)
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-9])
    with pytest.raises(DataError, match=r"00001\.parquet.*doctor"):
        Ledger(tmp_path).step(0, "generate", "", {})


def test_no_changed_byte_of_a_page_passes_for_data_before_a_step_is_done(tmp_path):
    values = np.random.default_rng(0).integers(2**40, size=40).tolist()
    step = Ledger(tmp_path).step(0, "generate", "", {})
    step.write(0, table(*values))
    whole = step.shard_path(0).read_bytes()
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # the footer lies behind them
    refused = 0
    for place in range(pages):
        changed = bytearray(whole)
        changed[place] ^= 4
        step.shard_path(0).write_bytes(changed)
        try:
            found = Ledger(tmp_path).step(0, "generate", "", {}).read(0)
        except DataError:
            refused += 1
        else:  # what changed is not data: padding, statistics
            assert found.column("x").to_pylist() == values, place
    assert refused > 40 * 8


def test_leftovers_of_a_crash_are_removed(tmp_path):
    step = finished_step(tmp_path, {})
    leftover = step.path / ".tmp-1-00002.parquet"
    leftover.write_bytes(b"half a shard")
    Ledger(tmp_path).step(0, "generate", "", {})
    assert not leftover.exists()


def test_a_kill_while_writing_never_leaves_a_torn_shard(tmp_path):
    code = (
        "import pyarrow as pa, sys\n"
        "from pathlib import Path\n"
        "from selfkd.ledger import Ledger\n"
        "step = Ledger(Path(sys.argv[1])).step(0, 'generate', '', {})\n"
        "print('go', flush=True)\n"
        "for i in range(100000): step.write(i, pa.table({'x': list(range(2000))}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    step_dir = tmp_path / "rounds" / "000" / "01-generate"
    while len(list(step_dir.glob("[0-9]*.parquet"))) < 5:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = Ledger(tmp_path).step(0, "generate", "", {})
    assert {t.num_rows for t in step.tables()} == {2000}
    assert step.shards() == list(range(len(step.shards())))


def test_events_survive_a_torn_last_line_and_name_a_broken_one(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.event("a")
    ledger.event("b")
    path = tmp_path / "events.jsonl"
    with path.open("a") as file:
        file.write('{"seq": 3, "ev')
    assert Ledger(tmp_path).event("c")["seq"] == 3
    lines = path.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["a", "b", "c"]
    path.write_text("\n".join([lines[0], "garbage", lines[2]]) + "\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        Ledger(tmp_path)


def test_a_full_disk_is_an_infrastructure_error(tmp_path, monkeypatch):
    step = Ledger(tmp_path).step(0, "generate", "", {})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match=r"No space left.*free space"):
        step.write(0, table(1))
    assert [p.name for p in step.path.iterdir()] == ["step.json"]
