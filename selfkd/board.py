"""What a run's events add up to while it goes on, and how they are said in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfkd.rundir import HELDOUT

Fields = Mapping[str, Any]

TRUSTED_SHARE = 0.2
"""Share of a step after which its own pace counts, without what it took to get going."""


@dataclass(slots=True)
class Meter:
    """How far one step is."""

    round: int
    verb: str
    label: str
    total: int
    """0 where nobody knows yet."""
    started: float
    done: int = 0
    told: float = 0.0
    """When `done` was last heard of; 0 is never."""
    facts: dict[str, Any] = field(default_factory=dict)
    _first: tuple[float, int, int] | None = None

    @property
    def name(self) -> str:
        """The verb, and what is special about this call of it."""
        label = "held-out" if self.label == HELDOUT else self.label
        return f"{self.verb} {label}".rstrip()

    def update(self, done: int, total: int, facts: Fields, now: float) -> None:
        """Take in one progress event."""
        if done < self.done:
            self._first = None  # a process died and begins again
        self.done, self.told = done, now
        self.total = max(self.total, total)
        self.facts = {**self.facts, **{k: v for k, v in facts.items() if v is not None}}
        if self._first is None:
            self._first = (now, done, self.facts.get("tokens", 0))

    def _since(self) -> tuple[float, int, int]:
        """Time, done and tokens from which the pace is measured."""
        if self._first and self.done - self._first[1] >= TRUSTED_SHARE * self.total:
            return self._first
        return (self.started, 0, 0)

    def speed(self) -> float | None:
        """Tokens a second, or None where there are none."""
        start, _, tokens = self._since()
        made = self.facts.get("tokens", 0) - tokens
        return made / (self.told - start) if made > 0 and self.told > start else None

    def eta(self, now: float) -> float | None:
        """Seconds to go, or None where that is unknown."""
        start, done, _ = self._since()
        if self.done <= done or self.told <= start or self.done >= self.total:
            return None
        left = (self.total - self.done) * (self.told - start) / (self.done - done)
        return max(0.0, left - (now - self.told))

    def fact(self) -> str:
        """The one figure worth watching in this step."""
        if "loss" in self.facts:
            return f"loss {self.facts['loss']:.3f}"
        if "reward_mean" in self.facts:
            return f"reward {self.facts['reward_mean']:.3f}"
        speed = self.speed()
        return f"{speed:,.0f} tok/s" if speed else ""

    def count(self) -> str:
        """`312/512`, or what is known of it."""
        return f"{self.done}/{self.total}" if self.total > self.done or self.told else ""


class Board:
    """What the events so far add up to. Another thread may read it: values are replaced whole."""

    def __init__(self) -> None:
        self.facts: Fields = {}
        self.meters: dict[tuple[int, str], Meter] = {}
        self.rows: dict[int, Fields] = {}
        self._asked: dict[tuple[int, str], int] = {}
        """(round, label) -> samples asked for, which its judge will see."""

    def apply(self, name: str, fields: Fields, now: float) -> None:
        """Take in one event, whatever it is."""
        if name == "run_started":
            self.facts = dict(fields)
        elif name == "step_started":
            self._open(fields, fields["total"], now)
        elif name == "step_progress":
            meter = self.meter(fields) or self._open(fields, fields["total"], now)
            known = {"round", "step", "verb", "label", "done", "total"}
            facts = {k: v for k, v in fields.items() if k not in known}
            meter.update(fields["done"], fields["total"], facts, now)
        elif name == "step_finished":
            ended = (fields["round"], fields["step"])
            self.meters = {k: m for k, m in self.meters.items() if k != ended}
        elif name == "round_row":
            self.rows = {**self.rows, fields["row"]["round"]: fields["row"]}

    def _open(self, fields: Fields, total: int, now: float) -> Meter:
        place = (fields["round"], fields["label"])
        if fields["verb"] == "generate":
            self._asked[place] = total
        elif fields["verb"] == "judge":
            total = max(total, self._asked.get(place, 0))
        meter = Meter(fields["round"], fields["verb"], fields["label"], total, now)
        self.meters = {**self.meters, (fields["round"], fields["step"]): meter}
        return meter

    def meter(self, fields: Fields) -> Meter | None:
        """The meter of the step an event is about."""
        return self.meters.get((fields["round"], fields["step"]))

    @property
    def base_heldout(self) -> float | None:
        """Held-out reward of the base model."""
        return self.rows.get(0, {}).get("heldout_reward")

    def place(self, round: int) -> str:
        """`round 2/4`."""
        rounds = self.facts.get("rounds")
        return f"round {round}/{rounds}" if rounds else f"round {round}"

    def line(self, meter: Meter | None, now: float) -> str:
        """One line of progress."""
        if meter is None:
            return ""
        eta = meter.eta(now)
        parts = [self.place(meter.round), meter.name, meter.count(), meter.fact()]
        return "  ".join(p for p in [*parts, f"ETA {clock_text(eta)}" if eta else ""] if p)

    def sentence(self, name: str, fields: Fields) -> str:
        """What an event says in words; empty for those that are shown in other ways."""
        if name == "step_started" and fields["verb"] in {"generate", "train"}:
            meter = Meter(fields["round"], fields["verb"], fields["label"], 0, 0)
            what = f" {fields['total']} samples" if fields["total"] else ""
            return f"{self.place(fields['round'])}  {meter.name}{what} ..."
        if name == "step_finished":
            said = step_words(fields["verb"], fields["summary"])
            meter = Meter(fields["round"], fields["verb"], fields["label"], 0, 0)
            where = f"{self.place(fields['round'])}  {meter.name}"
            return f"{where}: {said} in {duration(fields['seconds'])}" if said else ""
        return notice(name, fields)


def notice(name: str, fields: Fields) -> str:
    """What an event that is not about progress says in words."""
    match name:
        case "run_started":
            return (
                f"{fields['name']}{' (resumed)' if fields.get('resumed') else ''}: "
                f"{fields['loop']} on {fields['model']}, judged by {fields['judge']}, "
                f"{fields['rounds']} rounds, {fields['engine']}, in {fields['path']}"
            )
        case "message":
            level = fields.get("level", "")
            return f"{level}: {fields['text']}" if level in {"warning", "error"} else fields["text"]
        case "alarm":
            return f"alarm in round {fields['round']}, {fields['alarm']}: {fields['message']}"
        case "gate":
            return gate_words(fields)
        case "stopped":
            return f"stopped: {fields['reason']}"
        case "run_failed":
            return f"failed: {fields.get('error', '')}"
        case "run_finished":
            reason = f": {fields['reason']}" if fields.get("reason") else ""
            return f"finished in {duration(fields['seconds'])}{reason}"
    return ""


def gate_words(fields: Fields) -> str:
    """A gate's decision, with the test behind it."""
    test = f"held-out {fields['delta']:+.3f} against {fields['best']}, p={fields['p_value']:.3f}"
    if fields["decision"] == "rolled_back":
        return f"{fields['policy']} rolled back: {test}"
    return f"{fields['policy']} promoted: {test}"


def step_words(verb: str, summary: Fields) -> str:
    """A finished step in words; empty for a verb without a summary worth reading."""
    match verb:
        case "prompts":
            long = f", {summary['too_long']} too long" if summary.get("too_long") else ""
            return f"{summary['prompts']} prompts{long}"
        case "generate":
            cut = f", {summary['truncated']} truncated" if summary.get("truncated") else ""
            return f"{summary['samples']} samples, {summary['tokens']:,} tokens{cut}"
        case "judge":
            reasons = ", ".join(f"{n} {status}" for status, n in summary["unscored"].items())
            mean = summary["reward_mean"]
            said = f"reward {mean:.3f}" if mean is not None else "no reward"
            return f"{said}{f', without one: {reasons}' if reasons else ''}"
        case "keep":
            reasons = ", ".join(f"{n} {why}" for why, n in summary["dropped"].items())
            return f"{summary['kept']} kept{f', dropped: {reasons}' if reasons else ''}"
        case "pair":
            return f"{summary['pairs']} pairs from {summary['prompts']} prompts"
        case "train":
            if not summary.get("steps"):
                why = "diverged" if summary.get("diverged") else "nothing learnt"
                return f"{why}, {summary['policy']} stays"
            return (
                f"{summary['policy']} from {summary['start']}, {summary['steps']} steps on "
                f"{summary['examples']} examples, loss {summary['loss_first']:.3f} to "
                f"{summary['loss_last']:.3f}"
            )
    return ""


def clock_text(seconds: float) -> str:
    """`0:42`, `12:05` or `3:01:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def duration(seconds: float) -> str:
    """`6.2 s` below a minute, else as `clock_text`."""
    return f"{seconds:.1f} s" if seconds < 60 else clock_text(seconds)
