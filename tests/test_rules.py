"""Rules drop the right candidates, each with its reason, in the order they are composed."""

import numpy as np
import pytest

from selfkd.pairs import best_worst
from selfkd.records import Decision, read_rows
from selfkd.rules import (
    Candidates,
    above,
    at_most,
    below,
    correct,
    everything,
    finished,
    top,
    unique,
)
from selfkd.rulesyntax import parse_rule
from selfkd.tables import decide
from selfkd.weights import LARGEST, by_advantage, by_reward, by_shortfall


def candidates(
    rewards: list[float | None],
    prompts: str | None = None,
    texts: list[str] | None = None,
    finishes: list[str] | None = None,
) -> Candidates:
    count = len(rewards)
    return Candidates(
        sample_ids=[str(i) for i in range(count)],
        prompt_ids=list(prompts or "p" * count),
        completions=texts or [f"text {i}" for i in range(count)],
        answers=[None] * count,
        finishes=finishes or ["stop"] * count,
        lengths=np.ones(count, dtype=np.int64),
        rewards=np.array([np.nan if r is None else r for r in rewards], dtype=float),
    )


def apply(rule, c: Candidates, seed: int = 0) -> list[str | None]:
    return rule.apply(c, np.random.default_rng(seed))


def test_above_is_strict_and_never_treats_no_reward_as_zero():
    c = candidates([0.5, 0.7, None, -1.0])
    assert apply(above(0.5), c) == ["reward below 0.5", None, "unscored", "reward below 0.5"]
    assert apply(above(0.5, inclusive=True), c)[0] is None
    assert apply(above(-5), c)[2] == "unscored"


def test_correct_wants_full_reward():
    assert apply(correct(), candidates([1, 0.99, None])) == [None, "incorrect", "unscored"]


def test_finished_drops_truncated_and_empty():
    c = candidates([1, 1, 1], texts=["a", "b", "  "], finishes=["stop", "length", "stop"])
    assert apply(finished(), c) == [None, "truncated", "empty"]


def test_unique_is_per_prompt():
    c = candidates([1] * 4, "aabb", ["x", " x", "x", "y"])
    assert apply(unique(), c) == [None, "duplicate", None, None]
    assert apply(unique(lambda t: 0), c) == [None, "duplicate", None, "duplicate"]


def test_at_most_is_a_seeded_choice_not_the_first():
    c = candidates([1.0] * 20, "a" * 10 + "b" * 10)
    kept = [i for i, r in enumerate(apply(at_most(3), c, seed=1)) if r is None]
    assert [sum(i < 10 for i in kept), sum(i >= 10 for i in kept)] == [3, 3]
    assert kept == [i for i, r in enumerate(apply(at_most(3), c, seed=1)) if r is None]
    others = {
        tuple(i for i, r in enumerate(apply(at_most(3), c, seed=s)) if r is None) for s in range(8)
    }
    assert len(others) > 1


def test_top_keeps_no_sample_for_its_place_alone():
    best, rest = None, "not in the best 2"
    assert apply(top(2), candidates([None, 0.1, 0.9, 0.5])) == ["unscored", rest, best, best]
    # Two of equal reward for one place: neither is better. One that is better stays.
    assert apply(top(2), candidates([0.5, 0.5, 0.9, 0.1])) == ["tied", "tied", best, rest]
    assert apply(top(2, ties=True), candidates([0.5, 0.5, 0.9, 0.1])) == [best, rest, best, rest]
    # Where all fit there is nothing to choose; a constant judge chooses nothing.
    assert apply(top(2), candidates([1.0, 1.0])) == [best, best]
    assert apply(top(2), candidates([1.0] * 5)) == ["tied"] * 5


def test_composition_counts_only_survivors():
    # Of prompt a's three, one is wrong and two are equal: the cap must see a single candidate.
    c = candidates([0, 1, 1, 1], "aaab", ["w", "x", "x", "y"])
    rule = correct() | unique() | at_most(1)
    assert apply(rule, c) == ["incorrect", None, "duplicate", None]
    assert rule.name == "correct | unique | at_most(1)"


@pytest.mark.parametrize(
    "rule", [above(0), correct(), finished(), unique(), at_most(2), top(2), everything()]
)
def test_no_candidate_is_fine(rule):
    assert apply(rule, candidates([])) == []


def test_below_keeps_what_failed_and_never_treats_no_reward_as_zero():
    c = candidates([0.5, 0.2, None])
    assert apply(below(0.5), c) == ["reward 0.5 or more", None, "unscored"]


def test_weights_come_from_verdicts():
    c = candidates([1.0, 0.0, None, 0.25], prompts="aabb")
    assert by_reward().weigh(c).tolist() == pytest.approx([1, 0, np.nan, 0.25], nan_ok=True)
    assert by_shortfall(0.5).weigh(c).tolist() == pytest.approx([0, 0.5, np.nan, 0.25], nan_ok=True)
    weighed = by_advantage(0.5).weigh(c).tolist()
    assert weighed == pytest.approx([np.e, 1 / np.e, np.nan, 1], nan_ok=True)
    assert by_advantage(1e-9).weigh(c)[0] == LARGEST


def test_what_has_no_weight_is_dropped_with_the_reason():
    c = candidates([1.0, 0.0, None, 0.25])
    table = decide(c, at_most(3), by_reward(), np.random.default_rng(0))
    decisions = read_rows(table, Decision)
    kept = [(d.reason, d.weight) for d in decisions]
    assert set(kept) <= {
        ("kept", 1.0), ("weight 0", 1.0), ("no reward to weigh it by", 1.0), ("kept", 0.25),
        ("over 3 a prompt", 1.0),
    }  # fmt: skip
    assert [d.kept for d in decisions] == [d.reason == "kept" for d in decisions]
    assert len({d.reason for d in decisions} & {"weight 0", "no reward to weigh it by"}) >= 1


@pytest.mark.parametrize(
    "rule",
    [
        above(0.5) | at_most(2),
        finished() | correct() | unique(),
        top(2),
        top(2, ties=True),
        below(1) | everything(),
        best_worst(0.5),
        best_worst(0.5, truncated=True),
    ],
    ids=lambda rule: rule.name,
)
def test_a_recorded_rule_can_be_applied_again(rule):
    assert parse_rule(rule.name).name == rule.name
