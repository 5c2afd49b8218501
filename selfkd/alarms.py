"""What goes wrong in self-improvement, told early and in words, from the figures of each round.

A rise or fall is measured against its standard error, and growth that is bought with a gain on
held-out, or in the best of a prompt's samples, is none of the drifts below: a model that learns to
answer well does write other lengths, and does become surer. `AlarmConfig` has the thresholds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfkd.alarmconfig import AlarmConfig, AlarmName
from selfkd.controls import failing

Rows = Sequence[Mapping[str, Any]]
Level = Literal["warning", "critical"]

STDERR = {
    "reward_mean": "reward_stderr",
    "reward_best": "reward_best_stderr",
    "heldout_reward": "heldout_stderr",
}
"""Figure -> its standard error."""
GROWN = 1.1
"""Mean length, as a multiple of the first round's, from which a judge's taste for length shows."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something to look at: the round it began in, what it is called, and why, in words."""

    round: int
    name: AlarmName
    level: Level
    message: str


def alarms(rows: Rows, config: AlarmConfig | None = None) -> list[Alarm]:
    """The alarms of a run, each in the round where it begins; `rows` are those of `round_rows`."""
    config = config or AlarmConfig.model_validate({})
    told = [check for check in CHECKS if check[0] not in config.off]
    return [
        Alarm(rows[i]["round"], name, level, message)
        for i in range(len(rows))
        for name, level, check in told
        if (message := check(rows[: i + 1], config)) and not (i and check(rows[:i], config))
    ]


# -- rises and falls ------------------------------------------------------------------------------


def _beyond(now: Mapping[str, Any], then: Mapping[str, Any], key: str, noise: float) -> bool:
    """Whether a figure rose by more than `noise` standard errors of the difference."""
    errors = [row.get(STDERR[key]) or 0.0 for row in (now, then)]
    return now[key] - then[key] > noise * math.hypot(*errors)


def _heldout_gained(rows: Rows) -> bool:
    """Whether the last round's held-out is above the first one's by a standard error."""
    measured = [r for r in rows if r["heldout_reward"] is not None]
    if len(measured) < 2 or measured[-1] is not rows[-1]:
        return False
    return _beyond(measured[-1], measured[0], "heldout_reward", 1.0)


def _first(rows: Rows, key: str) -> Mapping[str, Any] | None:
    """The first round with a figure, where the last one is another that has it too."""
    first = next((r for r in rows if r[key] is not None), None)
    return first if first is not rows[-1] and rows[-1][key] is not None else None


# -- checks: each looks at the last of its rows and says what is wrong, or '' ---------------------


def _reward_hacking(rows: Rows, config: AlarmConfig) -> str:
    # A rolled-back policy is measured, but its round samples from the best one: not comparable.
    usable = [r for r in rows if (r["gate"] or {}).get("decision") != "rolled_back"]
    usable = [r for r in usable if None not in (r["reward_mean"], r["heldout_reward"])]
    if len(usable) < 2 or usable[-1] is not rows[-1]:
        return ""
    now, best = usable[-1], max(usable[:-1], key=lambda r: r["heldout_reward"])
    rises = _beyond(now, best, "reward_mean", config.reward_hacking)
    falls = _beyond(best, now, "heldout_reward", config.reward_hacking)
    if not (rises and falls):
        return ""
    return (
        f"since round {best['round']} the judge's reward has risen ({best['reward_mean']:.3f} to "
        f"{now['reward_mean']:.3f}) while held-out has fallen ({best['heldout_reward']:.3f} to "
        f"{now['heldout_reward']:.3f}): the model learns to please the judge, not the task"
    )


def _pass_decline(rows: Rows, config: AlarmConfig) -> str:
    first, now = _first(rows, "pass_at_k"), rows[-1]
    if first is None or not now["prompts"]:
        return ""
    shared = [int(k) for k in first["pass_at_k"] if k in now["pass_at_k"]]
    top = str(max(shared, default=1))
    (one, one_before), (many, many_before) = (
        (now["pass_at_k"][k], first["pass_at_k"][k]) for k in ("1", top)
    )
    counts = (now["prompts"], first["prompts"] or 1)
    noise = math.sqrt(
        sum(p * (1 - p) / n for p, n in zip((many, many_before), counts, strict=True))
    )
    if top == "1" or one <= one_before or many_before - many <= config.pass_decline * noise:
        return ""
    return (
        f"one try solves more prompts than in round {first['round']} ({one_before:.0%} to "
        f"{one:.0%}), but {top} tries solve fewer ({many_before:.0%} to {many:.0%}): the model "
        "grows surer and can do less"
    )


def _diversity_collapse(rows: Rows, config: AlarmConfig) -> str:
    first, now = _first(rows, "unique"), rows[-1]
    if first is None or now["unique"] >= first["unique"] * (1 - config.diversity_collapse):
        return ""
    best = None not in (now["reward_best"], first["reward_best"])
    if best and _beyond(now, first, "reward_best", 2.0):
        return ""
    return (
        f"only {now['unique']:.0%} of a prompt's samples differ (in round {first['round']} "
        f"{first['unique']:.0%}), and the best of them are no better: later rounds have ever less "
        "to choose from"
    )


def _length_drift(rows: Rows, config: AlarmConfig) -> str:
    first, now = _first(rows, "length_mean"), rows[-1]
    if first is None or _heldout_gained(rows):
        return ""
    last = next(r for r in reversed(rows[:-1]) if r["length_mean"] is not None)
    limit, length = config.length_drift, now["length_mean"]
    step = length > last["length_mean"] * (1 + limit / 2)
    if length > first["length_mean"] * (1 + limit) or (step and length > first["length_mean"]):
        since = last if step else first
        return (
            f"completions grew from {since['length_mean']:.0f} tokens in round {since['round']} "
            f"to {length:.0f}, and held-out shows nothing for it"
        )
    return ""


def _length_bias(rows: Rows, config: AlarmConfig) -> str:
    first, now = _first(rows, "length_mean"), rows[-1]
    if first is None or _heldout_gained(rows) or now["reward_length"] is None:
        return ""
    grown = now["length_mean"] > GROWN * first["length_mean"]
    if not grown or now["reward_length"] < config.length_bias:
        return ""
    return (
        "of a prompt's samples the judge prefers the longer ones (correlation "
        f"{now['reward_length']:.2f}), completions grow ({first['length_mean']:.0f} to "
        f"{now['length_mean']:.0f} tokens), and held-out shows nothing for it"
    )


def _low_acceptance(rows: Rows, config: AlarmConfig) -> str:
    rate = rows[-1]["accept_rate"]
    if rate is None or rate >= config.low_acceptance:
        return ""
    return f"only {rate:.1%} of the samples were kept: next to nothing to learn from"


def _high_acceptance(rows: Rows, config: AlarmConfig) -> str:
    rate = rows[-1]["accept_rate"]
    if rate is None or rate <= config.high_acceptance:
        return ""
    return f"{rate:.1%} of the samples were kept: the judge hardly chooses, so little is learnt"


def _judge_failures(rows: Rows, config: AlarmConfig) -> str:
    scored, unscored = rows[-1]["scored"] or 0, rows[-1]["unscored"] or 0
    if unscored <= (scored + unscored) * config.judge_failures:
        return ""
    reasons = ", ".join(f"{n} {status}" for status, n in rows[-1]["unscored_by"].items())
    return f"{unscored / (scored + unscored):.0%} of the samples have no reward ({reasons})"


def _judge_controls(rows: Rows, config: AlarmConfig) -> str:
    failed = failing(rows[-1]["controls"] or {})
    return failed and f"the judge rewards planted controls for what they are not: {failed}"


def _judge_saturation(rows: Rows, config: AlarmConfig) -> str:
    share = rows[-1]["reward_top"]
    if share is None or share <= config.judge_saturation:
        return ""
    return f"the judge gives {share:.0%} of the samples the same, highest reward: it cannot choose"


def _judge_drift(rows: Rows, config: AlarmConfig) -> str:
    found = rows[-1]["anchors"]
    if not found or abs(found["shift"]) <= max(
        config.judge_drift * found["spread"], 2 * (found["stderr"] or 0)
    ):
        return ""
    return (
        f"the judge gives the same {found['samples']} samples {found['reward_mean']:.3f} where it "
        f"gave {found['reward_first']:.3f} at first: rewards of different rounds do not compare"
    )


def _low_coverage(rows: Rows, config: AlarmConfig) -> str:
    share = rows[-1]["coverage"]
    if share is None or share >= config.low_coverage:
        return ""
    return f"only {share:.0%} of the prompts have a kept sample: the model learns the easy ones"


def _truncation(rows: Rows, config: AlarmConfig) -> str:
    share = rows[-1]["truncated"]
    if share is None or share <= config.truncation:
        return ""
    return f"{share:.0%} of the completions were cut at the limit: raise sampling.max_tokens"


def _overlap(rows: Rows, config: AlarmConfig) -> str:
    share = rows[-1]["overlap"]
    if share is None or share <= config.overlap:
        return ""
    return f"{share:.1%} of the held-out prompts were learnt from: held-out measures memory"


CHECKS: tuple[tuple[AlarmName, Level, Callable[[Rows, AlarmConfig], str]], ...] = (
    ("reward_hacking", "critical", _reward_hacking),
    ("pass_decline", "warning", _pass_decline),
    ("diversity_collapse", "warning", _diversity_collapse),
    ("length_drift", "warning", _length_drift),
    ("length_bias", "warning", _length_bias),
    ("low_acceptance", "critical", _low_acceptance),
    ("high_acceptance", "warning", _high_acceptance),
    ("judge_failures", "warning", _judge_failures),
    ("judge_controls", "critical", _judge_controls),
    ("judge_saturation", "warning", _judge_saturation),
    ("judge_drift", "critical", _judge_drift),
    ("low_coverage", "warning", _low_coverage),
    ("truncation", "warning", _truncation),
    ("overlap", "critical", _overlap),
)
