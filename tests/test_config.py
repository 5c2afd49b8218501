"""Configs are strict, point at the line, and keep paths right wherever they were written."""

from pathlib import Path

import pytest

from selfkd.config import Resolved, load, resolve
from selfkd.errors import UsageError

LOOPS = Path(__file__).parents[1] / "loops"

BASE = """\
loop: rest_em
model: some/model
prompts: data.jsonl
judge: number
rounds: 3
sampling:
  temperature: 0.7
  max_tokens: 32
"""


def write(folder: Path, text: str = BASE) -> Path:
    (folder / "data.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("file", sorted(LOOPS.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_loop_has_a_config_that_resolves(file):
    resolved = load(file)
    assert resolved.loop.name == file.stem
    assert resolved.options.rounds >= 1
    assert resolved.gold_judge is not None


def test_the_document_resolves_to_itself(tmp_path):
    resolved = load(
        write(tmp_path), ["train.learning_rate=3e-5", "judge={use: number, tolerance: 0.1}"]
    )
    again = resolve(resolved.document())
    assert again.document() == resolved.document()
    assert again.judge.identity() == resolved.judge.identity()


def test_overrides_are_typed_and_reach_sections_and_loop_options(tmp_path):
    resolved = load(
        write(tmp_path),
        ["rounds=6", "samples_per_prompt=2", "train.learning_rate=1e-4", "prompts.per_round=5"],
    )
    assert resolved.options.rounds == 6
    assert resolved.options.samples(10) == 20
    assert resolved.config.train.learning_rate == 1e-4
    assert resolved.config.prompts.per_round == 5
    assert resolved.config.prompts.source.endswith("data.jsonl")


@pytest.mark.parametrize("form", ["{file}", "{{use: '{file}', limit: 2}}", "{{use: '{file}'}}"])
def test_files_of_both_judges_are_relative_to_the_config(tmp_path, monkeypatch, form):
    (tmp_path / "mine.py").write_text("def short(sample, *, limit: int = 1):\n    return 1\n")
    judge = form.format(file="mine.py:short")
    rest = "\n".join(line for line in BASE.splitlines() if not line.startswith("judge:"))
    path = write(tmp_path, f"{rest}\njudge: {judge}\ngold_judge: {judge}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    resolved = load(path)
    for found in (resolved.judge, resolved.gold_judge):
        assert found and found.spec == f"{tmp_path}/mine.py:short"


def test_paths_are_relative_to_whoever_wrote_them(tmp_path, monkeypatch):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (here / "mine.py").write_text("def polite(sample):\n    return 1.0\n")
    (here / "other.jsonl").write_text('{"prompt": "x"}\n')
    monkeypatch.chdir(here)
    resolved = load(write(there), ["judge=mine.py:polite"])
    assert resolved.config.prompts.source == str(there / "data.jsonl")
    assert resolved.judge.spec == f"{here / 'mine.py'}:polite"
    assert load(write(there), ["prompts=other.jsonl"]).config.prompts.source == str(
        here / "other.jsonl"
    )
    assert isinstance(resolve(resolved.document()), Resolved)


MISTAKES = [
    # what stands there, what is written instead, line[:column], what the error says
    ("rounds: 3", "ronds: 3", "5", "unknown key ronds — did you mean rounds?"),
    (
        "temperature: 0.7",
        "temprature: 0.7",
        "7",
        "unknown key sampling.temprature — did you mean sampling.temperature?",
    ),
    ("rounds: 3", "rounds: -1", "5", "rounds = -1: should be greater than or equal to 1"),
    (
        "temperature: 0.7",
        "temperature: .nan",
        "7",
        "sampling.temperature = nan: should be a finite number",
    ),
    ("max_tokens: 32", "max_tokens: 0", "8", "sampling.max_tokens = 0: should be greater than"),
    ("rounds: 3", "rounds: many", "5", "rounds = 'many': should be a valid integer"),
    ("judge: number", "judge: numbr", "4", "unknown judge 'numbr' — did you mean 'number'?"),
    ("judge: number", "judge: {use: number, tolerence: 1}", "4", "no option 'tolerence'"),
    ("loop: rest_em", "loop: rest_me", "1", "unknown loop 'rest_me' — did you mean 'rest_em'?"),
    ("rounds: 3", "rounds: 3\nrounds: 4", "6:1", "duplicate key rounds (first on line 5)"),
    ("rounds: 3", "\trounds: 3", "5:1", "malformed YAML"),
    ("rounds: 3", "rounds: [3", "6", "malformed YAML"),
    ("model: some/model", "model: sk-abcdefghijklmnop", "2", "holds what looks like a secret"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES, ids=lambda v: v[:24])
def test_mistakes_name_the_line_the_value_and_the_remedy(tmp_path, old, new, line, message):
    path = write(tmp_path, BASE.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        load(path)
    text = str(error.value)
    assert text.startswith(f"{path}:{line}:")
    assert message in text
    assert error.value.exit_code == 2
    assert "sk-abc" not in text


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"run\.yaml: judge is missing"):
        load(write(tmp_path, BASE.replace("judge: number\n", "")))


def test_a_wrong_override_is_named(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"override 'train\.epochz=2': unknown key train\.epochz — did you mean train\.epochs",
    ):
        load(write(tmp_path), ["train.epochz=2"])
    with pytest.raises(UsageError, match=r"override 'rounds=0': rounds = 0"):
        load(write(tmp_path), ["rounds=0"])
    with pytest.raises(UsageError, match="'rounds' is not an override"):
        load(write(tmp_path), ["rounds"])


def test_weights_in_parts_are_refused_where_they_cannot_be():
    with pytest.raises(UsageError, match="one worker has nobody to share with") as told:
        load(LOOPS / "rest_em.yaml", ["cluster.trainer_fsdp=true"])
    assert told.value.where == "override 'cluster.trainer_fsdp=true'"
    parts = ["cluster.trainer_workers=2", "cluster.trainer_fsdp=true"]
    assert load(LOOPS / "rest_em.yaml", parts).config.cluster.trainer_fsdp
    with pytest.raises(UsageError, match=r"is for all weights, and train\.lora_rank is set"):
        load(LOOPS / "rest_em.yaml", [*parts, "train.lora_rank=4"])


def test_gate_off_survives_yaml(tmp_path):
    assert load(write(tmp_path, BASE + "gate: {mode: off}\n")).config.gate.mode == "off"


def test_a_loop_may_not_shadow_a_section(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from selfkd import LoopOptions, Run\n"
        "class Options(LoopOptions):\n    sampling: int = 1\n"
        "def mine(run: Run, options: Options) -> None: ...\n"
    )
    with pytest.raises(UsageError, match="names an option like a config section: sampling"):
        load(write(tmp_path, BASE.replace("loop: rest_em", "loop: mine.py:mine")))
