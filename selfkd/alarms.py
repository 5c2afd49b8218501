"""What goes wrong in self-improvement, told early and in words, from the figures of each round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Rows = Sequence[Mapping[str, Any]]
Level = Literal["warning", "critical"]

DIVERSITY_FALL = 0.30
"""Share of the first round's diversity that may be lost: METHODS 5, diversity collapse."""
LENGTH_STEP = 0.25
LENGTH_TOTAL = 0.50
"""Growth of the mean length in one round, and over the run: METHODS 5, length drift."""
ACCEPT_LOW = 0.02
ACCEPT_HIGH = 0.98
"""Acceptance outside of these teaches nothing: next to no data, or data that no judge chose."""
FAILURES = 0.05
"""Share of samples without a reward: METHODS 5, parse rate below 0.95."""
COVERAGE = 0.20
"""Share of prompts with a kept sample: METHODS 5, starvation."""
TRUNCATION = 0.50
"""Share of completions cut at the token limit: the judge sees mostly halves."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something to look at: the round it began in, what it is called, and why, in words."""

    round: int
    name: str
    level: Level
    message: str


def alarms(rows: Rows) -> list[Alarm]:
    """The alarms of a run, each in the round where it begins; `rows` are those of `round_rows`."""
    return [
        Alarm(rows[i]["round"], name, level, message)
        for i in range(len(rows))
        for name, level, check in CHECKS
        if (message := check(rows[: i + 1])) and not (i and check(rows[:i]))
    ]


def _reward_hacking(rows: Rows) -> str:
    # A rolled-back policy is measured, but its round samples from the best one: not comparable.
    usable = [r for r in rows if (r["gate"] or {}).get("decision") != "rolled_back"]
    last = [r for r in usable if r["reward_mean"] is not None and r["heldout_reward"] is not None]
    if len(last) < 3 or last[-1] is not rows[-1]:
        return ""
    rewards = [r["reward_mean"] for r in last[-3:]]
    heldout = [r["heldout_reward"] for r in last[-3:]]
    rises = rewards[0] < rewards[1] < rewards[2]
    falls = heldout[0] > heldout[1] > heldout[2]
    noise = last[-1]["heldout_stderr"] or 0
    if not (rises and falls and heldout[0] - heldout[2] > noise):
        return ""
    return (
        f"the judge's reward rises ({rewards[0]:.3f} to {rewards[2]:.3f}) while held-out falls "
        f"({heldout[0]:.3f} to {heldout[2]:.3f}) over two rounds: the model learns to please the "
        "judge, not the task"
    )


def _diversity_collapse(rows: Rows) -> str:
    last = rows[-1]
    first = next((r for r in rows if r["unique"] is not None), last)
    if last["unique"] is None or first is last:
        return ""
    if last["unique"] < first["unique"] * (1 - DIVERSITY_FALL):
        return (
            f"only {last['unique']:.0%} of a prompt's samples differ (at first "
            f"{first['unique']:.0%}): later rounds have ever less to choose from"
        )
    # More text repeats more pairs by itself, so the ratio compares only texts of similar size.
    similar = first["tokens"] / 2 <= last["tokens"] <= first["tokens"] * 2
    pairs = (first["distinct_2"], last["distinct_2"])
    if similar and None not in pairs and pairs[1] < pairs[0] * (1 - DIVERSITY_FALL):
        return (
            f"distinct token pairs fell from {pairs[0]:.0%} to {pairs[1]:.0%}: completions "
            "become alike"
        )
    return ""


def _length_drift(rows: Rows) -> str:
    lengths = [r["length_mean"] for r in rows if r["length_mean"] is not None]
    if len(lengths) < 2 or rows[-1]["length_mean"] is None:
        return ""
    if lengths[-1] > lengths[-2] * (1 + LENGTH_STEP):
        return f"completions grew from {lengths[-2]:.0f} to {lengths[-1]:.0f} tokens in one round"
    if lengths[-1] > lengths[0] * (1 + LENGTH_TOTAL):
        return f"completions grew from {lengths[0]:.0f} to {lengths[-1]:.0f} tokens in this run"
    return ""


def _low_acceptance(rows: Rows) -> str:
    rate = rows[-1]["accept_rate"]
    if rate is None or rate >= ACCEPT_LOW:
        return ""
    return f"only {rate:.1%} of the samples were kept: next to nothing to learn from"


def _high_acceptance(rows: Rows) -> str:
    rate = rows[-1]["accept_rate"]
    if rate is None or rate <= ACCEPT_HIGH:
        return ""
    return f"{rate:.1%} of the samples were kept: the judge hardly chooses, so little is learnt"


def _judge_failures(rows: Rows) -> str:
    scored, unscored = rows[-1]["scored"] or 0, rows[-1]["unscored"] or 0
    if unscored <= (scored + unscored) * FAILURES:
        return ""
    reasons = ", ".join(f"{n} {status}" for status, n in rows[-1]["unscored_by"].items())
    return f"{unscored / (scored + unscored):.0%} of the samples have no reward ({reasons})"


def _constant_judge(rows: Rows) -> str:
    last = rows[-1]
    low, mean, high = last["reward_p10"], last["reward_mean"], last["reward_p90"]
    if low is None or (last["scored"] or 0) < 2 or low != high or abs(mean - low) > 1e-9:
        return ""
    return f"the judge gives every sample the reward {mean:g}: there is nothing to choose by"


def _coverage(rows: Rows) -> str:
    share = rows[-1]["coverage"]
    if share is None or share >= COVERAGE:
        return ""
    return f"only {share:.0%} of the prompts have a kept sample: the model learns the easy ones"


def _truncation(rows: Rows) -> str:
    share = rows[-1]["truncated"]
    if share is None or share <= TRUNCATION:
        return ""
    return f"{share:.0%} of the completions were cut at the limit: raise sampling.max_tokens"


CHECKS: tuple[tuple[str, Level, Callable[[Rows], str]], ...] = (
    ("reward_hacking", "critical", _reward_hacking),
    ("diversity_collapse", "warning", _diversity_collapse),
    ("length_drift", "warning", _length_drift),
    ("low_acceptance", "critical", _low_acceptance),
    ("high_acceptance", "warning", _high_acceptance),
    ("judge_failures", "warning", _judge_failures),
    ("constant_judge", "warning", _constant_judge),
    ("low_coverage", "warning", _coverage),
    ("truncation", "warning", _truncation),
)
"""Name, level and check; a check looks at the last of its rows and says what is wrong, or ''."""
