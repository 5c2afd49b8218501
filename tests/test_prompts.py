"""What a config may say about prompts, and which prompts a round gets."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from selfkd.errors import DataError
from selfkd.prompts import PromptOptions, require_answers
from selfkd.prompts.shape import text_key
from selfkd.records import Prompt
from tests.prompting import numbered, opened, texts, write_jsonl

# -- options ------------------------------------------------------------------------------------


def test_a_string_is_a_source() -> None:
    assert PromptOptions.model_validate("a.jsonl") == PromptOptions.model_validate(
        {"source": "a.jsonl"}
    )


def test_options_survive_a_round_trip_through_plain_values() -> None:
    options = PromptOptions.model_validate({"source": "p.csv", "heldout": 3})
    assert PromptOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_round": 0},
        {"heldout": -1},
        {"overlap": "ignore"},
        {"colour": "red"},
        {"heldout": 0, "heldout_source": "b.jsonl"},
        {"heldout": 0, "options": {"heldout_split": "test"}},
        {"heldout_source": "b.jsonl", "options": {"heldout_split": "test"}},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PromptOptions.model_validate({"source": "a.jsonl", **wrong})


def test_prompts_import_nothing_heavy() -> None:
    code = (
        "import sys, selfkd.prompts, selfkd.chat, selfkd.views\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'datasets', 'reasoning_gym'}\n"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- rounds and held-out ------------------------------------------------------------------------


def test_without_per_round_all_prompts_come_every_round_in_order(tmp_path: Path) -> None:
    numbered(tmp_path / "p.jsonl", 5)
    source = opened("p.jsonl", tmp_path)
    assert texts(source.train(0)) == texts(source.train(3)) == [f"q{i}" for i in range(5)]
    assert source.heldout() == []


def test_fresh_rounds_are_slices_of_a_seeded_order_that_cycles(tmp_path: Path) -> None:
    numbered(tmp_path / "p.jsonl", 10)
    source = opened("p.jsonl", tmp_path, per_round=4, heldout=0)
    rounds = [texts(source.train(r)) for r in range(5)]
    assert all(len(set(r)) == 4 for r in rounds)
    assert sorted(rounds[0] + rounds[1] + rounds[2][:2]) == [f"q{i}" for i in range(10)]
    assert rounds[2][2:] == rounds[0][:2]  # exhausted: from the start of the same order
    assert texts(source.train(5)) == rounds[0]
    again = opened("p.jsonl", tmp_path, per_round=4, heldout=0)
    assert texts(again.train(3)) == rounds[3]
    other = opened("p.jsonl", tmp_path, per_round=4, heldout=0, seed=1)
    assert texts(other.train(0)) != rounds[0]


def test_fixed_rounds_are_the_same(tmp_path: Path) -> None:
    numbered(tmp_path / "p.jsonl", 10)
    source = opened("p.jsonl", tmp_path, per_round=4, fresh=False)
    assert texts(source.train(0)) == texts(source.train(2))
    assert len(opened("p.jsonl", tmp_path, per_round=99, heldout=1).train(0)) == 9


def test_heldout_is_split_off(tmp_path: Path) -> None:
    numbered(tmp_path / "p.jsonl", 30)
    source = opened("p.jsonl", tmp_path, heldout=7)
    held, train = texts(source.heldout()), texts(source.train(0))
    assert (len(held), len(train)) == (7, 23)
    assert set(held) | set(train) == {f"q{i}" for i in range(30)}
    assert len(opened("p.jsonl", tmp_path).heldout()) == 3  # a tenth where nothing is said
    assert opened("p.jsonl", tmp_path, heldout=0).heldout() == []


def test_copies_that_differ_in_spacing_do_not_straddle_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"question\u00a0{i}  x" if copy else f"question {i} x"}
            for i in range(20) for copy in (0, 1)]  # fmt: skip
    write_jsonl(tmp_path / "p.jsonl", rows)
    source = opened("p.jsonl", tmp_path, heldout=10)
    held = {text_key(p) for p in source.heldout()}
    assert not held & {text_key(p) for p in source.train(0)}
    assert source.report["overlap"] == 40 - 10 - len(source.train(0)) > 0


def test_heldout_that_takes_everything_is_refused(tmp_path: Path) -> None:
    numbered(tmp_path / "p.jsonl", 5)
    with pytest.raises(DataError, match="no prompt is left to train on: 5 were read, 5 are held"):
        opened("p.jsonl", tmp_path, heldout=9)


def test_a_heldout_source_is_kept_apart(tmp_path: Path) -> None:
    numbered(tmp_path / "train.jsonl", 5)
    numbered(tmp_path / "test.jsonl", 4, first=3)
    source = opened("train.jsonl", tmp_path, heldout_source="test.jsonl")
    assert texts(source.heldout()) == ["q3", "q4", "q5", "q6"]
    assert texts(source.train(0)) == ["q0", "q1", "q2"]
    assert source.report["overlap"] == 2
    first = opened("train.jsonl", tmp_path, heldout_source="test.jsonl", heldout=1)
    assert texts(first.heldout()) == ["q3"]
    with pytest.raises(DataError, match=r"test\.jsonl: 2 training prompts are also held out"):
        opened("train.jsonl", tmp_path, heldout_source="test.jsonl", overlap="error")


def test_duplicates_are_counted_once_by_messages_and_answer(tmp_path: Path) -> None:
    rows = [("a", "1", 1), ("b", "1", 2), ("a", "1", 3), ("a", "2", 4)]
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": p, "answer": a, "n": n} for p, a, n in rows])
    source = opened("p.jsonl", tmp_path)
    assert [p.columns["n"] for p in source.train(0)] == [1, 2, 4]
    assert source.report["duplicates"] == 1


def test_limit_reads_the_first_rows_only(tmp_path: Path) -> None:
    path = numbered(tmp_path / "p.jsonl", 5)
    path.write_text(path.read_text() + "{broken\n")
    assert texts(opened("p.jsonl", tmp_path, limit=2).train(0)) == ["q0", "q1"]


def test_the_fingerprint_follows_content_options_and_seed_but_not_the_place(tmp_path: Path) -> None:
    numbered(tmp_path / "p.jsonl", 5)
    numbered(tmp_path / "moved.jsonl", 5)
    numbered(tmp_path / "other.jsonl", 5, first=1)
    rows = [{"prompt": f"q{i}", "answer": str(i), "more": 1} for i in range(5)]
    write_jsonl(tmp_path / "column.jsonl", rows)
    own = opened("p.jsonl", tmp_path).fingerprint
    assert own == opened("moved.jsonl", tmp_path).fingerprint
    changed = [
        opened("other.jsonl", tmp_path),
        opened("column.jsonl", tmp_path),
        opened("p.jsonl", tmp_path, per_round=2),
        opened("p.jsonl", tmp_path, heldout=2),
        opened("p.jsonl", tmp_path, seed=1),
    ]
    assert len({own, *(source.fingerprint for source in changed)}) == 6


def test_answers_are_required_by_name_of_up_to_five(tmp_path: Path) -> None:
    with_answer, without = Prompt.of("a", "1"), [Prompt.of(f"q{i}") for i in range(7)]
    require_answers([with_answer], "number")
    with pytest.raises(DataError, match=r"judge 'number' .* and 2 more") as caught:
        require_answers([with_answer, *without], "number")
    named = [p.id for p in without if p.id in str(caught.value)]
    assert named == [p.id for p in without[:5]]
