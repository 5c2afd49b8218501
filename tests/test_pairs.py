"""Pair rules on worked examples: who is compared with whom, and why others are not."""

import numpy as np
import pytest

from selfkd.errors import UsageError
from selfkd.pairs import (
    DEMONSTRATION,
    PairRule,
    all_above,
    best_worst,
    given_own,
    k_zip,
    length_controlled,
    right_wrong,
)
from selfkd.rules import Candidates


def candidates(
    rewards: list[float | None],
    prompts: str | None = None,
    *,
    texts: str | None = None,
    cut: str = "",
    lengths: list[int] | None = None,
    given: str = "",
) -> Candidates:
    """Candidates named a, b, c...; `cut` names those that were truncated, `given` those given."""
    names = [chr(ord("a") + i) for i in range(len(rewards))]
    return Candidates(
        sample_ids=names,
        prompt_ids=list(prompts or "p" * len(rewards)),
        completions=list(texts or names),
        answers=[None] * len(rewards),
        finishes=["length" if n in cut else "stop" for n in names],
        lengths=np.array(lengths or [1] * len(rewards)),
        rewards=np.array([np.nan if r is None else r for r in rewards], dtype=float),
        policies=[DEMONSTRATION if n in given else "base" for n in names],
    )


def pairs(rule: PairRule, c: Candidates, seed: int = 0) -> tuple[list[str], list[str | None]]:
    """Pairs as two letters, chosen first; and the reasons."""
    found, reasons = rule.apply(c, np.random.default_rng(seed))
    return [c.sample_ids[i] + c.sample_ids[j] for i, j in found], reasons


def test_best_worst_takes_the_extremes_of_each_prompt():
    c = candidates([3, 5, 1, 2, 2, 4], "pppqqq")
    assert pairs(best_worst(), c) == (["bc", "fd"], ["neither best nor worst", None, None, None,
                                                     "neither best nor worst", None])  # fmt: skip


def test_best_worst_drops_ties_and_small_margins():
    assert pairs(best_worst(), candidates([2, 2])) == ([], ["tie", "tie"])
    assert pairs(best_worst(1.5), candidates([2, 3])) == ([], ["margin below 1.5"] * 2)
    assert pairs(best_worst(1), candidates([2, 3]))[0] == ["ba"]


def test_no_reward_is_not_the_worst_reward():
    assert pairs(best_worst(), candidates([None, 3, 1])) == (["bc"], ["unscored", None, None])
    assert pairs(best_worst(), candidates([None, 3])) == (
        [],
        ["unscored", "nothing to compare with"],
    )


def test_truncated_samples_are_rejected_but_chosen_only_where_allowed():
    c = candidates([5, 3, 1], cut="ac")
    assert pairs(best_worst(), c)[0] == ["bc"]
    assert pairs(best_worst(truncated=True), c)[0] == ["ac"]
    assert pairs(best_worst(), candidates([5, 3], cut="ab")) == ([], ["nothing to choose"] * 2)
    assert pairs(k_zip(2), candidates([1, 0], cut="a")) == ([], ["none right", "none right"])
    assert pairs(right_wrong(), candidates([1, 1, 0], cut="a"))[0] == ["bc"]


@pytest.mark.parametrize(
    "rule", [best_worst(), all_above(0), k_zip(3), right_wrong(), length_controlled(0.1)]
)
def test_identical_candidates_make_no_pair_even_if_judged_differently(rule):
    c = candidates([1, 0, 1], texts="xxx")
    assert pairs(rule, c) == ([], ["nothing to compare with", "duplicate", "duplicate"])
    assert pairs(rule, candidates([])) == ([], [])


def test_all_above_pairs_every_two_that_are_far_enough_apart():
    assert pairs(all_above(2), candidates([5, 3, 1]))[0] == ["ab", "ac", "bc"]
    assert pairs(all_above(3), candidates([5, 3, 1])) == (["ac"], [None, "margin below 3", None])
    assert pairs(all_above(0), candidates([1, 1])) == ([], ["tie", "tie"])


def test_k_zip_restarts_the_shorter_list():
    # Two right (a, b), three wrong (c, d, e), K = 5: winners a b a b a, losers c d e c d.
    c = candidates([1, 1, 0, 0, 0])
    assert pairs(k_zip(5), c)[0] == ["ac", "bd", "ae", "bc", "ad"]
    assert pairs(k_zip(2), c) == (["ac", "bd"], [None, None, None, None, "not paired"])
    assert pairs(k_zip(2), candidates([1, 1]))[1] == ["all right"] * 2
    assert pairs(k_zip(2), candidates([0, 0.5]))[1] == ["none right"] * 2


def test_right_wrong_is_the_product_or_a_seeded_part_of_it():
    c = candidates([1, 0, 1, 0])
    assert pairs(right_wrong(), c)[0] == ["ab", "ad", "cb", "cd"]
    some = pairs(right_wrong(2), c, seed=1)[0]
    assert len(some) == 2 and some == pairs(right_wrong(2), c, seed=1)[0]
    assert len({tuple(pairs(right_wrong(2), c, seed=s)[0]) for s in range(9)}) > 1


def test_length_control_prefers_short_among_the_good_and_rejects_long_among_the_bad():
    # Rewards 5 and 1, rho = 0.25: good from 4 up, bad from 2 down.
    c = candidates([5, 4, 3, 2, 1], lengths=[90, 40, 10, 70, 20])
    assert pairs(length_controlled(0.25), c)[0] == ["bd"]
    assert pairs(length_controlled(0.0), c)[0] == ["ae"]
    assert pairs(length_controlled(0.25), candidates([2, 2]))[1] == ["tie", "tie"]
    with pytest.raises(UsageError, match="rho"):
        length_controlled(0.5)


def test_what_was_given_is_preferred_to_each_of_ones_own():
    c = candidates([None] * 4, given="a")
    assert pairs(given_own(), c)[0] == ["ab", "ac", "ad"]
    # A copy of what was given teaches nothing; a prompt without anything given has no pair.
    c = candidates([None] * 4, "ppqq", texts="xxyz", given="a")
    assert pairs(given_own(), c) == (
        [], ["nothing to compare with", "duplicate", "nothing given", "nothing given"]
    )  # fmt: skip


@pytest.mark.parametrize("given", ["a", "d"])
def test_a_copy_of_what_was_given_costs_no_other_pair_whichever_came_first(given):
    """Of three of the policy's own one is the given text; SPIN lists its own before the given."""
    texts = {"a": "xyzx", "d": "xyzx"}[given]
    copy, own = {"a": ("d", "bc"), "d": ("a", "bc")}[given]
    found, reasons = pairs(given_own(), candidates([None] * 4, texts=texts, given=given))
    assert found == [given + one for one in own]
    assert [n for n, r in zip("abcd", reasons, strict=True) if r == "duplicate"] == [copy]


def test_one_prompt_never_meets_another():
    assert pairs(best_worst(), candidates([5, 1], "pq"))[1] == ["nothing to compare with"] * 2
