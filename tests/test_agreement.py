"""Agreement of a judge with gold, against counts by hand."""

import itertools

import numpy as np
import pytest

from selfkd.agreement import agreement, auc


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 4, 40).astype(float), rng.random(40) < 0.4
    pairs = list(itertools.product(scores[right], scores[~right]))
    expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert auc(scores, right) == pytest.approx(expected)
    assert auc(scores, right) == pytest.approx(1 - auc(-scores, right))  # type: ignore[operator]
    assert auc(scores, np.ones(40, bool)) is None


def test_pairs_are_those_of_a_prompt_that_gold_tells_apart():
    nan = float("nan")
    prompts = np.array([0, 0, 0, 1, 1, 2, 2])
    scores = np.array([3.0, 1.0, 1.0, 2.0, nan, 5.0, 1.0])
    gold = np.array([1.0, 0.0, 1.0, 1.0, 0.0, nan, 1.0])
    found = agreement(prompts, scores, gold)
    assert (found["samples"], found["coverage"]) == (6, pytest.approx(5 / 6))
    assert (found["pairs"], found["pair_accuracy"]) == (2, 0.75)  # 3 > 1, and a tie
    empty = agreement(prompts, scores, np.full(7, nan))
    assert empty == {
        "samples": 0, "coverage": None, "auc": None, "pairs": 0, "pair_accuracy": None,
    }  # fmt: skip
