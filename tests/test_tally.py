"""When a run stops because of what its judge could not say."""

import pytest

from selfkd.errors import DataError
from selfkd.records import Verdict
from selfkd.tally import Tally


def tally(**counts: int) -> Tally:
    found = Tally()
    for status, count in counts.items():
        reward = 0.5 if status == "ok" else None
        verdict = Verdict("s", "p", "mine", reward, status, rationale=f"{status} of s")  # type: ignore[arg-type]
        found.add([verdict] * count)
    return found


def test_counts_and_mean() -> None:
    found = tally(ok=3, unparsed=2, error=1)
    assert (found.judged, found.scored, found.mean) == (6, 3, 0.5)
    assert found.summary("mine") == {
        "judge": "mine", "scored": 3, "unscored": {"unparsed": 2, "error": 1}, "reward_mean": 0.5,
    }  # fmt: skip
    assert Tally().mean is None


def test_failures_above_the_allowed_share_end_the_run() -> None:
    Tally().check(0.0, 0.0, 0)
    tally(ok=90, error=5, timeout=5).check(0.1, 1.0, 100)
    tally(unparsed=50, abstained=50).check(0.0, 1.0, 100)
    with pytest.raises(DataError) as caught:
        tally(ok=80, error=7, timeout=4, unparsed=9).check(0.1, 1.0, 100)
    expected = "judge 'mine' failed on 11 of 100 samples (7 error, 4 timeout, 9 unparsed), "
    assert str(caught.value).startswith(
        expected + "more than the share 0.1 of 100; for example error of s"
    )
    assert caught.value.exit_code == 4


def test_it_is_told_as_soon_as_it_is_certain() -> None:
    tally(error=10).check(0.1, 1.0, 100)
    with pytest.raises(DataError, match="failed on 11 of 11 samples"):
        tally(error=11).check(0.1, 1.0, 100)


def test_too_few_rewards_end_the_run_whatever_the_reason() -> None:
    tally(ok=50, unparsed=30, abstained=20).check(1.0, 0.5, 100)
    with pytest.raises(DataError) as caught:
        tally(ok=49, error=1, unparsed=30, abstained=20).check(1.0, 0.5, 100)
    assert str(caught.value).startswith(
        "judge 'mine' gave 51 of 100 samples no reward (20 abstained, 1 error, 30 unparsed), more "
        "than the share 0.5 of 100; for example unparsed of s"
    )
    assert "judging.max_unscored" in str(caught.value)
