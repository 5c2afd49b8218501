"""The YAML beside each preference loop, from the command line to the last stage, at tiny size.

The real verbs, sampler, trainer and judges, in this process, on a model that says numbers whatever
it is asked. What counts is what each stage recorded, not what is learnt.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from selfkd import assembly
from selfkd.metrics import round_rows
from tests.commandline import carried_out
from tests.conftest import byte_tokenizer
from tests.testbed.chain import Chain, chain_model
from tests.testbed.inprocess import InProcess

LOOPS = Path(__file__).parents[1] / "loops"
END, DIGITS = "<|im_end|>", "0123456789"
NUMBERS = {
    "\n": dict.fromkeys(DIGITS, 0.1),  # an answer begins after a line break
    " ": dict.fromkeys(DIGITS, 0.1),
    **dict.fromkeys(DIGITS, dict.fromkeys(DIGITS, 0.009) | {END: 0.46, " ": 0.45}),
}
"""Numbers with spaces between them, so that some are scores, some answers and some new tasks."""
WINNERS = NUMBERS | {
    "\n": dict.fromkeys(DIGITS, 0.06) | {"W": 0.4},
    **{"W": {"i": 1.0}, "i": {"n": 1.0}, "n": {"n": 0.5, "e": 0.5}, "e": {"r": 1.0}},
    **{"r": {":": 1.0}, ":": {"A": 0.5, "B": 0.5}, "A": {END: 1.0}, "B": {END: 1.0}},
}
"""And now and then the winner of a comparison."""

SMALL = [
    "prompts.options.max_digits=1", "prompts.per_round=8", "prompts.heldout=4", "report_to=[]",
    "engine.kind=transformers", "engine.dtype=float32", "train.dtype=float32",
    "on_no_signal=continue",
]  # fmt: skip


class Played:
    """A run as it was recorded."""

    def __init__(self, path: Path, base: Path) -> None:
        self.path = path
        self.base = base
        self.rows = round_rows(path)

    def steps(self, round: int) -> list[str]:
        """The steps of a round by name, without prompts and what is done about held-out."""
        found = sorted((self.path / "rounds" / f"{round:03d}").iterdir())
        names = [path.name[3:] for path in found]
        return [n for n in names if "heldout" not in n and not n.startswith("prompts")]

    def table(self, round: int, name: str) -> list[dict[str, Any]]:
        """The rows of a step."""
        files = sorted(self._step(round, name).glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def args(self, round: int, name: str = "train") -> dict[str, Any]:
        """What a step was asked."""
        return json.loads((self._step(round, name) / "step.json").read_text())["args"]

    def reasons(self, round: int, name: str = "keep") -> Counter[str]:
        """Why samples were kept, paired or dropped."""
        return Counter(row["reason"] for row in self.table(round, name))

    def weights(self, policy: str) -> dict[str, Any]:
        """The weights of a policy."""
        number = policy.removeprefix("round-")
        folder = self.base if policy == "base" else self.path / "policies" / f"round-{number:0>3}"
        return load_file(folder / "model.safetensors")

    def _step(self, round: int, name: str) -> Path:
        (step,) = (self.path / "rounds" / f"{round:03d}").glob(f"??-{name}")
        return step


Play = Callable[..., Played]


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Play:
    """Carries out `selfkd run loops/NAME.yaml`, made small, on a model that says `says`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assembly, "Cluster", InProcess)

    def run(name: str, *overrides: str, says: Chain = NUMBERS) -> Played:
        model = chain_model(tmp_path / "model", byte_tokenizer(), says)
        command = ["run", str(LOOPS / f"{name}.yaml"), f"model={model}", "--name", name]
        said = carried_out(monkeypatch, capfd, *command, *SMALL, *overrides)
        assert not said.code, said.err
        assert f"The run is in runs/{name}" in said.out
        return Played(tmp_path / "runs" / name, model)

    return run


def check(run: Played, rounds: int, samples: Sequence[int], starts: Sequence[str]) -> None:
    """What every run shows: each sample judged, a policy for each round, each one measured."""
    assert [row["samples"] for row in run.rows] == list(samples)
    assert [row["heldout_reward"] is None for row in run.rows] == [False] * (rounds + 1)
    for number, row in enumerate(run.rows):
        drawn = {sample["id"] for sample in run.table(number, "generate")}
        verdicts = run.table(number, "judge")
        assert {v["sample_id"] for v in verdicts} == drawn and len(verdicts) == row["samples"]
        assert all((v["reward"] is None) == (v["status"] != "ok") for v in verdicts)
    assert [run.args(number)["start_name"] for number in range(rounds)] == list(starts)
    for number in range(rounds):
        assert run.rows[number]["train"]["policy"] == f"round-{number + 1}"
        before, after = (run.weights(name) for name in (starts[number], f"round-{number + 1}"))
        assert any((before[name] != after[name]).any() for name in before)


def check_pairs(run: Played, round: int, label: str = "") -> int:
    """Each pair is of one prompt's samples, the better one chosen; how many there are."""
    name = f"-{label}" if label else ""
    rewards = {v["sample_id"]: v["reward"] for v in run.table(round, f"judge{name}")}
    pairs = run.table(round, f"pair{name}")
    for pair in pairs:
        gap = rewards[pair["chosen_id"]] - rewards[pair["rejected_id"]]
        assert gap > 0 and gap == pytest.approx(pair["margin"])
    decided = run.reasons(round, f"keep{name}")
    assert decided.total() == len(rewards)
    assert len({p["chosen_id"] for p in pairs}) == decided["chosen"]
    return len(pairs)


def test_lmsi(play: Play) -> None:
    run = play("lmsi")
    check(run, 1, [8 * 16] * 2, ["base"])
    assert run.steps(0) == ["generate", "judge", "judge-audit", "keep", "train", "round"]
    assert run.steps(1) == ["generate", "judge", "judge-audit", "round"]
    labels: dict[str, set[str]] = {}
    verdicts = {v["sample_id"]: v for v in run.table(0, "judge")}
    for verdict in verdicts.values():
        if verdict["reward"] == 1:
            labels.setdefault(verdict["prompt_id"], set()).add(verdict["answer"])
    assert len(labels) == 8 and all(len(answers) == 1 for answers in labels.values())
    learnt = [row["sample_ids"][0] for row in run.table(0, "train")]
    kept = run.reasons(0)
    assert len(learnt) == kept["kept"] == run.rows[0]["train"]["examples"] >= 8
    assert all(verdicts[id]["reward"] == 1 for id in learnt) and kept["incorrect"] > 0
    assert run.rows[0]["agreement"]["samples"] == 8 * 16  # gold looked on


def test_spin(play: Play) -> None:
    run = play("spin")
    check(run, 3, [8] * 4, ["base", "round-1", "round-2"])
    for number, (beta, factor, pairs) in enumerate([(0.1, 1, 8), (0.1, 0.5, 16), (1.0, 0.2, 16)]):
        assert run.steps(number) == [
            "generate", "judge", "generate-given", "keep", "pair", "train", "round",
        ]  # fmt: skip
        given = {s["id"]: s for s in run.table(number, "generate-given")}
        assert all(s["completion"].startswith("The answer is ") for s in given.values())
        own = {s["id"] for s in run.table(number, "generate")}
        found = run.table(number, "pair")
        assert {p["chosen_id"] for p in found} == given.keys()
        assert {p["rejected_id"] for p in found} == own
        asked = run.args(number)
        assert asked["settings"]["beta"] == beta and asked["ref_name"] == asked["start_name"]
        assert asked["options"]["learning_rate"] == pytest.approx(1e-5 * factor)
        assert run.rows[number]["train"]["examples"] == pairs  # those of the round before, too
    assert run.steps(3) == ["generate", "judge", "round"]


def test_iterative_rpo(play: Play) -> None:
    run = play("iterative_rpo")
    check(run, 3, [8 * 8] * 4, ["base", "round-1", "round-2"])
    for number in range(3):
        assert run.steps(number) == ["generate", "judge", "keep", "pair", "train", "round"]
        count = check_pairs(run, number)
        sides: dict[str, set[bool]] = {}
        finished = {s["id"]: s["finish"] == "stop" for s in run.table(number, "generate")}
        for verdict in run.table(number, "judge"):
            if not verdict["reward"] or finished[verdict["sample_id"]]:
                sides.setdefault(verdict["prompt_id"], set()).add(bool(verdict["reward"]))
        assert count == 4 * sum(both == {True, False} for both in sides.values()) > 0
        asked = run.args(number)
        assert asked["ref_name"] == asked["start_name"] and asked["settings"]["alpha"] == 1.0
        assert run.rows[number]["train"]["examples"] == count
    assert run.steps(3) == ["generate", "judge", "round"]


JUDGED = ["generate", "judge", "generate-judgements"]


def test_self_rewarding(play: Play) -> None:
    run = play("self_rewarding", "created_per_round=24")
    new = [run.reasons(number, "keep-instructions")["kept"] for number in (1, 2)]
    check(run, 3, [8 * 4, *(4 * n for n in new), 8 * 4], ["base", "round-1", "round-2"])
    # The seed stage: given answers, and what the judge wrote in agreement with gold.
    assert run.steps(0) == [
        *JUDGED, "judge-audit", "generate-given", "keep-given", "judge-judgements",
        "keep-judgements", "train", "round",
    ]  # fmt: skip
    assert run.reasons(0, "keep-given") == {"kept": 8}
    agreeing = run.reasons(0, "keep-judgements")["kept"]
    told = run.table(0, "judge-judgements")
    assert len(told) == 8 * 4 * 5 and agreeing > 0
    assert {v["reward"] for v in told} == {0.0, 1.0, None}
    assert run.rows[0]["train"]["examples"] == 8 + agreeing
    for number in (1, 2):
        assert run.steps(number) == [
            "generate-instructions", "keep-instructions", *JUDGED,
            "generate-probe", "judge-probe", "generate-probe-judgements", "judge-audit",
            "keep", "pair", "train", "round",
        ]  # fmt: skip
        assert run.reasons(number, "keep-instructions").total() == 24 > new[number - 1] > 0
        made = {s["completion"] for s in run.table(number, "generate-instructions")}
        asked = [json.loads(p["messages"])[-1]["content"] for p in run.table(number, "prompts")]
        assert {*asked} <= made and len(asked) == new[number - 1]
        assert len(run.table(number, "judge-audit")) == len(run.table(number, "judge-probe")) == 16
        assert run.rows[number]["agreement"]["samples"] == 16
        assert len(run.table(number, "generate-judgements")) == run.rows[number]["samples"] * 5
        assert check_pairs(run, number) == run.rows[number]["train"]["examples"] > 0
    assert run.steps(3) == [*JUDGED, "judge-audit", "round"]


def test_meta_rewarding(play: Play) -> None:
    run = play("meta_rewarding", "prompts.per_round=16", says=WINNERS)
    check(run, 2, [16 * 4] * 3, ["base", "round-1"])
    actor = [*JUDGED, "judge-audit", "keep", "pair"]
    assert run.steps(0) == [
        *actor, "generate-comparisons", "judge-judgements", "keep-judgements", "pair-judgements",
        "train", "round",
    ]  # fmt: skip
    assert run.steps(1) == [*actor, "train", "round"]  # the judge's rounds are over
    pairs = [check_pairs(run, number) for number in (0, 1)]
    # Comparisons are of two judgements of one answer, each in both orders.
    written = {s["id"]: s["prompt_id"] for s in run.table(0, "generate-judgements")}
    met = [p["id"].split("|") for p in run.table(0, "prompts-comparisons")]
    assert met and all(written[a] == written[b] and [b, a] in met for a, b in met)
    said = [s["completion"] for s in run.table(0, "generate-comparisons")]
    won = sum(text in ("Winner:A", "Winner:B") for text in said)
    assert len(said) == len(met) and 0 < won < len(said)
    learnt = check_pairs(run, 0, "judgements")
    assert 0 < learnt <= len({frozenset(m) for m in met})
    trained = [run.rows[number]["train"]["examples"] for number in (0, 1)]
    assert trained == [pairs[0] + learnt, pairs[1]] and min(pairs) > 0
    assert run.steps(2) == [*JUDGED, "judge-audit", "round"]
