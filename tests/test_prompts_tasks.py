"""Prompts from real reasoning-gym tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import DataError, UsageError
from selfkd.prompts.shape import text_key
from selfkd.records import prompts_table, read_prompts
from tests.prompting import opened, texts, write_jsonl

CHAIN_SUM = {
    "source": "reasoning_gym:chain_sum",
    "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
}


def test_task_prompts_are_the_questions_unchanged_and_can_be_scored() -> None:
    import reasoning_gym

    source = opened(CHAIN_SUM, heldout=5, per_round=6)
    prompts = source.train(0)
    assert (len(prompts), len(source.heldout())) == (6, 5)
    for prompt in json.loads(json.dumps([p.columns["reasoning_gym"] for p in prompts])):
        task = reasoning_gym.create_dataset(prompt["task"], seed=0, size=1, **prompt["options"])
        assert task.score_answer(prompt["entry"]["answer"], prompt["entry"]) == 1.0
        assert task.score_answer("no", prompt["entry"]) < 1.0
    entry = prompts[0].columns["reasoning_gym"]["entry"]
    assert prompts[0].messages == ({"role": "user", "content": entry["question"]},)
    assert prompts[0].answer == entry["answer"]


def test_task_rounds_differ_and_repeat_exactly() -> None:
    source, again = opened(CHAIN_SUM), opened(CHAIN_SUM)
    assert len(source.train(0)) == 64 and len(source.heldout()) == 100
    assert source.train(1) == again.train(1) != source.train(0)
    assert source.heldout() == again.heldout()
    assert opened(CHAIN_SUM, seed=1).train(0) != source.train(0)
    fixed = opened(CHAIN_SUM, fresh=False)
    assert fixed.train(0) == fixed.train(5) == source.train(0)


def test_task_draws_are_distinct_and_never_held_out() -> None:
    digits = {**CHAIN_SUM, "options": {**CHAIN_SUM["options"], "max_digits": 1}}
    source = opened(digits, heldout=60, per_round=60)
    held = {text_key(p) for p in source.heldout()}
    assert len(held) == 60
    for round in range(3):
        drawn = [text_key(p) for p in source.train(round)]
        assert len(set(drawn)) == 60 and not held & set(drawn)
    report = source.report
    assert report["missing"] == 0
    source.train(1)
    assert source.report == report  # asked again, counted once


def test_a_task_that_has_no_more_gives_what_it_has() -> None:
    digits = {**CHAIN_SUM, "options": {**CHAIN_SUM["options"], "max_digits": 1}}
    source = opened(digits, heldout=100, per_round=1000)
    drawn = {text_key(p) for p in source.train(0)}
    assert source.report["missing"] == 1000 - len(drawn) > 0
    with pytest.raises(DataError, match="0 prompts: all that 'chain_sum' gives is held out"):
        opened(digits, heldout=1000).train(0)


def test_a_heldout_file_beside_a_task(tmp_path: Path) -> None:
    drawn = opened(CHAIN_SUM, per_round=8, heldout=0).train(0)
    write_jsonl(tmp_path / "h.jsonl", [{"prompt": drawn[0].text, "answer": drawn[0].answer}])
    source = opened(CHAIN_SUM, tmp_path, per_round=8, heldout_source="h.jsonl")
    assert texts(source.heldout()) == [drawn[0].text]
    assert len(source.train(0)) == 8 and drawn[0].text not in texts(source.train(0))


def test_template_and_system_apply_to_tasks() -> None:
    source = opened(CHAIN_SUM, template="{question} Think.", system="s", per_round=1, heldout=0)
    (prompt,) = source.train(0)
    question = prompt.columns["reasoning_gym"]["entry"]["question"]
    assert [m["content"] for m in prompt.messages] == ["s", question + " Think."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "reasoning_gym:chain_sums"}, r"no task 'chain_sums'.*did you mean 'chain_sum'"),
        ({"options": {"min_term": 2}}, r"no option 'min_term' \(given: 2\).*'min_terms'"),
        ({"options": {"min_terms": 0}}, r"min_terms must be positive \(given: min_terms=0\)"),
        ({"options": {"min_terms": "two"}}, r"refuses its options.*min_terms='two'"),
        ({"options": {"seed": 3}}, r"options\.seed: seed=3 .*the run's seed decides"),
        ({"limit": 5}, r"prompts\.limit: limit is for files"),
        ({"prompt_column": "text"}, r"no column 'text'; columns found: question, answer"),
        ({"heldout_source": "reasoning_gym:gcd"}, r"heldout_source is a file or data set"),
    ],
)
def test_wrong_task_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened({**CHAIN_SUM, **change})


def test_the_fingerprint_of_a_task_follows_options_and_seed() -> None:
    own = opened(CHAIN_SUM).fingerprint
    assert own == opened(CHAIN_SUM).fingerprint
    wider = {**CHAIN_SUM, "options": {"min_terms": 2, "max_terms": 3}}
    others = [opened(wider), opened(CHAIN_SUM, seed=1), opened(CHAIN_SUM, per_round=3)]
    assert len({own, *(source.fingerprint for source in others)}) == 4


def test_entries_of_any_kind_become_plain_json() -> None:
    for task in ("graph_color", "rush_hour", "arc_1d", "tower_of_hanoi", "countdown"):
        (prompt,) = opened(f"reasoning_gym:{task}", per_round=1, heldout=0).train(0)
        columns = json.loads(json.dumps(dict(prompt.columns)))
        assert columns == prompt.columns
        (back,) = read_prompts(prompts_table([prompt]))
        assert back == prompt
