"""The paired test catches falls and lets noise and gains pass."""

from math import comb

import numpy as np

from selfkd.gate import paired_test


def rewards(values) -> dict[str, float]:
    return {str(i): float(v) for i, v in enumerate(values)}


def test_equal_and_better_policies_pass():
    base = rewards([0, 1, 0, 1] * 10)
    assert paired_test(base, base).p_value == 1.0
    better = paired_test(rewards([1] * 40), base)
    assert better.delta == 0.5 and better.p_value > 0.99


def test_p_value_agrees_with_the_exact_sign_test_on_binary_rewards():
    # 40 prompts: 3 newly solved, 12 newly lost. With +-1 differences the permutation test is the
    # one-sided binomial sign test.
    before = [0] * 3 + [1] * 12 + [1] * 25
    after = [1] * 3 + [0] * 12 + [1] * 25
    result = paired_test(rewards(after), rewards(before), draws=200_000)
    exact = sum(comb(15, k) for k in range(4)) / 2**15
    assert abs(result.p_value - exact) < 0.003
    assert np.isclose(result.delta, -9 / 40)


def test_only_shared_prompts_count():
    result = paired_test({"a": 0.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
    assert (result.prompts, result.delta) == (1, -1.0)


def test_false_alarm_rate_is_at_most_the_level():
    rng = np.random.default_rng(0)
    falls = 0
    for _ in range(200):
        pair = rng.random((2, 100)) < 0.4
        result = paired_test(rewards(pair[0]), rewards(pair[1]), draws=1000)
        falls += result.delta < 0 and result.p_value < 0.05
    assert falls <= 20
