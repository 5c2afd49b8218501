"""The measures of a judge against their definitions, worked out by hand or by brute force."""

import itertools

import numpy as np
import pytest

from selfkd import agreement

RIGHT = np.array([True, True, True, False, False, True, False])
REWARDS = np.array([3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.5])


def test_auc_is_the_share_of_pairs_in_order() -> None:
    pairs = list(itertools.product(REWARDS[RIGHT], REWARDS[~RIGHT]))
    share = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert agreement.auc(REWARDS, RIGHT) == pytest.approx(share)
    assert agreement.auc(-REWARDS, RIGHT) == pytest.approx(1 - share)
    assert agreement.auc(np.ones(7), RIGHT) == 0.5
    assert agreement.auc(REWARDS, np.ones(7, bool)) is None


def test_accuracy_and_kappa_of_a_table() -> None:
    # 20 both yes, 5 only the judge, 10 only gold, 15 both no: the textbook's 0.7 and 0.4.
    said = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    right = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert agreement.accuracy(said, right, 0.5) == pytest.approx(0.7)
    assert agreement.kappa(said, right, 0.5) == pytest.approx(0.4)
    assert agreement.kappa(np.ones(50), right, 0.5) == 0
    assert agreement.kappa(np.ones(50), np.ones(50, bool), 0.5) is None
    assert agreement.best_threshold(REWARDS, RIGHT) == (2.0, pytest.approx(5 / 7))


def test_calibration_is_for_shares() -> None:
    rewards = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    right = np.array([True, True, True, False, False, True])
    assert agreement.calibration_error(rewards, right) == pytest.approx(
        4 / 6 * abs(0.9 - 0.75) + 2 / 6 * abs(0.1 - 0.5)
    )
    assert agreement.brier(rewards, right) == pytest.approx((3 * 0.01 + 0.81 + 0.01 + 0.81) / 6)
    assert agreement.calibration_error(np.array([1.0]), np.array([True])) == 0
    assert agreement.calibration_error(REWARDS, RIGHT) is agreement.brier(REWARDS, RIGHT) is None


def test_rank_correlation_shares_ranks() -> None:
    assert list(agreement.ranks(np.array([5.0, 1.0, 5.0, 7.0]))) == [2.5, 1, 2.5, 4]
    # Mid-ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    found = agreement.spearman(np.array([1.0, 2, 2, 9]), np.array([0.1, 0.3, 0.2, 50]))
    assert found == pytest.approx(4.5 / np.sqrt(22.5))
    assert agreement.spearman(np.ones(5), np.arange(5.0)) is None
    assert agreement.spearman(np.arange(2.0), np.arange(2.0)) is None
    # Longer is right here, and at equal gold shorter is liked.
    gold, length = np.repeat([0.0, 1.0], 4), np.array([1.0, 2, 3, 4, 11, 12, 13, 14])
    liked = np.array([4.0, 3, 2, 1, 40, 30, 20, 10])
    assert (agreement.spearman(liked, length) or 0) > 0.5
    assert agreement.spearman_within(gold, liked, length) == pytest.approx(-1)


def test_pairs_are_of_one_prompt() -> None:
    prompts, gold = np.array([0, 0, 1, 1, 1]), np.array([1.0, 0, 0, 1, 2])
    assert agreement.pairwise(prompts, np.array([5.0, 4, 1, 1, 0]), gold) == (4, 1.5 / 4)
    assert agreement.pairwise(prompts, gold, np.ones(5)) == (0, None)
    swapped = np.array([4.0, 5, 1, 2, 0])
    assert agreement.same_order(prompts, np.array([5.0, 4, 1, 1, 0]), swapped) == (4, 0.5)
    # Equal both times is no preference that could survive.
    assert agreement.same_order(prompts, np.ones(5), np.ones(5)) == (0, None)
    assert agreement.same_order(prompts, gold, np.array([1.0, 0, 0, 0, 2])) == (4, 0.75)


def test_excess_is_what_gold_does_not_explain() -> None:
    gold = np.array([1.0, 1, 1, 0, 0, 0])
    own = np.array([True, True, False, True, False, False])
    assert agreement.excess(gold, gold, own) == 0
    assert agreement.excess(gold, gold + 0.5 * own, own) == pytest.approx(0.5)
    assert agreement.excess(gold, gold, np.ones(6, bool)) is None


def test_the_interval_is_over_prompts() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    rewards = right + rng.normal(size=400)
    alone = agreement.interval(
        np.arange(400), lambda i: agreement.accuracy(rewards[i], right[i], 0.5)
    )
    truth = agreement.accuracy(rewards, right, 0.5)
    assert alone and truth and alone[0] < truth < alone[1]
    # 1.96 standard errors of a share.
    assert alone[1] - alone[0] == pytest.approx(
        2 * 1.96 * np.sqrt(truth * (1 - truth) / 400), rel=0.2
    )
    # Ten copies of each sample in one prompt hold no more than one does.
    copies = np.repeat(np.arange(40), 10)
    wide = agreement.interval(
        copies, lambda i: agreement.accuracy(rewards[copies[i]], right[copies[i]], 0.5)
    )
    assert wide and wide[1] - wide[0] > 2 * (alone[1] - alone[0])
    assert agreement.interval(np.zeros(5), lambda i: 1.0) is None
