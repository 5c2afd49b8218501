"""A run whose judge is on a server, from the command line: what it may spend, and what it tells."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.chaos.processes import WarmRay
from tests.commandline import carried_out
from tests.servers import Asked, Server, failed, hosting, said

pytestmark = pytest.mark.lengthy

SECRET = "key-5c1e-of-the-user"
FIRST = 10
"""Calls of the first budget."""

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a Ray whose processes know the key, as a user's would."""
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    started = WarmRay()
    yield started.address
    started.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with hosting() as host:
        yield host.fresh()


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Calls the command line in a folder of its own; its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFKD_CACHE", str(tmp_path / "cache"))

    def invoke(*arguments: str) -> tuple[int, str]:
        said = carried_out(monkeypatch, capfd, *arguments)
        return said.code, said.out + said.err

    return invoke


def config(folder: Path, model: Path, teacher: dict[str, Any], address: str) -> None:
    prompts = [{"prompt": f"{a}+{a}?", "answer": str(2 * a)} for a in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    values = {
        "loop": "rest_em",
        "model": str(model),
        "prompts": {"source": "prompts.jsonl", "fresh": False, "heldout": 0},
        "judge": {"use": "length_penalised", "judge": teacher},
        "gold_judge": None,
        "rounds": 1,
        "samples_per_prompt": 4,
        "sampling": {"temperature": 2.0, "max_tokens": 16},
        "engine": {"kind": "transformers", "dtype": "float32", "max_model_len": 128},
        "train": {"batch_size": 4, "epochs": 1, "dtype": "float32"},
        "on_no_signal": "continue",
        "gate": {"mode": "off"},
        "cluster": address,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))


def rows(run: Path, verb: str) -> list[dict[str, Any]]:
    steps = run.glob(f"rounds/*/*-{verb}/*.parquet")
    return [row for path in steps for row in pq.read_table(path).to_pylist()]


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is written in each file below a folder; Parquet is compressed, and has to be read."""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            yield path, str(pq.read_table(path).to_pylist())
        elif path.is_file():
            yield path, path.read_bytes().decode(errors="replace")


def spent(run: Path) -> int:
    """Calls that were answered, by the run's own record."""
    lines = "".join(path.read_text() for path in (run / "judging").iterdir()).splitlines()
    return sum(bool(line) for line in lines)


def test_a_run_that_is_out_of_money_goes_on_where_it_was_and_tells_nobody_the_key(
    tiny_model: Path, tmp_path: Path, address: str, server: Server, call: Call
) -> None:
    answered: Counter[str] = Counter()

    def behave(asked: Asked) -> Any:
        if asked.number == 1:
            return failed(400, f"{asked.key} is not for this")
        if asked.number == 3:
            return failed(429, f"{asked.key} is too quick")
        answered[asked.text] += 1
        return said(f"The key {asked.key} is good.\nScore: 3", asked.body)

    server.behave = behave
    inner = {"use": "self_reward", "draws": 2}
    teacher = {"judge": inner, "model": "m", "base_url": server.url, "api_key_env": "TEACHER_KEY"}
    config(tmp_path, tiny_model, {"use": "teacher", **teacher, "budget": {"calls": FIRST}}, address)

    code, out = call("run", "run.yaml", "--name", "one")
    run = tmp_path / "runs" / "one"
    assert code == 3 and f"used up ({FIRST} of {FIRST} calls)" in out
    assert "resume" in out and answered.total() == spent(run) == FIRST
    assert not rows(run, "keep")

    code, out = call("resume", "one", "judge.judge.budget.calls=48")
    assert code == 0, out
    samples = rows(run, "generate")
    assert len(samples) == 48 == len(rows(run, "judge"))
    assert all(v["reward"] is not None for v in rows(run, "judge"))
    # Each text was judged once, over both sessions and rounds.
    different = {(s["prompt_id"], s["completion"], s["finish"]) for s in samples}
    assert answered.total() == spent(run) == len(different) <= 48
    assert set(answered.values()) == {1}

    # Another judge around the same teacher: nothing is asked that is known.
    judges = json.dumps([{"use": "teacher", **teacher}, "random"])
    code, out = call("rejudge", "one", "--judge", "ensemble", f"judges={judges}")
    assert code == 0, out
    assert len(rows(tmp_path / "runs" / "one-rejudged-001", "judge")) >= 48
    assert answered.total() == len(different)

    card = ["judge=self_reward", "model=m", f"base_url={server.url}", "api_key_env=TEACHER_KEY"]
    given = ["--samples", "runs/one", "--controls", "0", "--repeats", "1", "--json"]
    code, out = call("judge", "test", "teacher", *card, *given)
    assert code == 0 and "The key [key] is good." in out
    assert SECRET not in out
    (tmp_path / "runs" / "card.json").write_text(out)
    assert call("report", "one", "-o", "runs/page.html")[0] == 0
    found = dict(texts(tmp_path))
    assert "[key]" in found[tmp_path / "runs" / "page.html"]
    assert any("The key [key] is good." in text for text in found.values())
    assert not [path for path, text in found.items() if SECRET in text]
    assert {a.key for a in server.asked} == {SECRET}
