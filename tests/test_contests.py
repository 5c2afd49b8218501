"""Comparisons of two: who meets whom, what both orders say, and Bradley-Terry strengths."""

from collections import Counter

import numpy as np
import pytest

from selfkd.contests import Standing, elo, meetings, settle, swaps


def test_everybody_meets_as_many_others():
    assert meetings([4, 7, 9]) == [(4, 7), (4, 9), (7, 9)]
    assert len(meetings(range(8))) == 28
    some = meetings(range(9), 4)
    assert len(some) == len(set(some)) == 18
    assert set(Counter(k for pair in some for k in pair).values()) == {4}
    assert meetings([3]) == meetings([]) == []
    assert meetings([1, 2], 1) == [(1, 2)]


def test_a_winner_that_changes_with_the_order_is_none():
    pairs = [(0, 1), (0, 2), (1, 2)]
    said = {(0, 1): "A", (1, 0): "B", (0, 2): "A", (2, 0): "A", (1, 2): None, (2, 1): "B"}
    table = settle(3, pairs, said, "tie")  # type: ignore[arg-type]
    assert table.wins.tolist() == [[0, 1, 0.5], [0, 0, 0], [0.5, 0, 0]]
    assert table.inconsistent.sum(1).tolist() == [1, 0, 1]
    assert table.rates([[0, 1, 2]], "counts").tolist() == [0.75, 0, 0.5]
    dropped = settle(3, pairs, said, "drop")  # type: ignore[arg-type]
    assert dropped.rates([[0, 1, 2]], "counts").tolist() == [
        1,
        0,
        pytest.approx(np.nan, nan_ok=True),
    ]
    assert dropped.inconsistent.sum() == 2
    standings = [table.standing(k) for k in range(3)]
    assert standings == [Standing(2, 1.5, 1), Standing(1, 0, 0), Standing(1, 0.5, 1)]
    assert swaps(str(standing) for standing in standings) == (2, 1)


def test_a_standing_is_read_in_what_other_judges_add_to_it():
    said = str(Standing(3, 1.5, 2))
    for text in (said, f"pairwise: {said}", f"0.5 less 0.1 for 300 tokens\n\n{said}; and so on"):
        assert Standing.read(text) == Standing(3, 1.5, 2)
    assert Standing.read(f"I think that {said}") is None
    assert swaps(["", "the server said no"]) is None and swaps([]) is None
    assert swaps([str(Standing(0, 0, 0))] * 2) == (0, 0)


def test_bradley_terry_sees_whom_one_has_beaten():
    # 2 and 3 beat one each, but 3 beat the champion.
    wins = np.zeros((4, 4))
    for i, j in ((0, 1), (0, 1), (0, 2), (2, 1), (3, 0)):
        wins[i, j] += 1
    table = settle(4, [], {}, "tie")
    table.wins[:] = wins
    first, second, third, fourth = table.rates([[0, 1, 2, 3]], "bradley_terry")
    assert fourth > first > third > second
    assert second > 0 and fourth < 1
    apart = table.rates([[0, 1], [2, 3]], "counts")
    assert apart[:2].tolist() == [1, 0] and np.isnan(apart[2:]).all()


def test_strengths_are_those_of_the_model():
    truth = np.array([1.0, 0.0, -1.0])
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    fitted = elo(chance * 10_000, steps=400)
    assert fitted == pytest.approx(truth, abs=0.01)
    # Two players, 3 wins to 1 and no prior: odds of 3, so log 3 apart.
    rating = elo(np.array([[0, 3], [1, 0]]), prior=0.0)
    assert rating[0] - rating[1] == pytest.approx(np.log(3), abs=1e-6)
    assert np.isfinite(elo(np.array([[0, 9], [0, 0]]))).all()
