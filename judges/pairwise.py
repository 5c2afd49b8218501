"""Which of two samples of a prompt is better, asked in both orders; the reward is the win rate.

A pair whose winner changes with the order tells of the judge's taste for a place, not of the
samples (Zheng et al. 2023, arXiv:2306.05685, section 3.4): it is counted as inconsistent.
"""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.contests import Pair, Side, Table, meetings, settle
from selfkd.judgecalls import Call, Caller, Choices, Message
from selfkd.judgeprompts import DrawnOptions, ask, last, policy_of, template

REMINDER = 'Your last answer could not be read. End with a line "Winner: A" or "Winner: B".'


class Said(NamedTuple):
    """The winner of one game, if it could be read."""

    winner: Side | None
    error: str
    cost_usd: float
    unread: str = ""


class PairwiseOptions(DrawnOptions):
    """Options of the judge `pairwise`."""

    template: str = template(__file__, "pairwise.txt")
    """How two are compared; {question}, {first}, {second} and {mark} are filled in."""
    winner_pattern: re.Pattern[str] = re.compile(r"^[\s*#]*Winner\**:(?:[\s*]*([AB])[\s*.]*$)?")
    """The last line that matches names the winner: its first group, A or B. Without that group, and
    where it matches twice, nobody wins. Begin one's own with ^, or a quoted winner counts."""
    by: Literal["text", "likelihood"] = "text"
    """Have a judgement written, or compare the log-probabilities of A and B after `opening`."""
    opening: str = "Winner: "
    """By likelihood: what the answer begins with."""
    opponents: int | None = Field(None, ge=1)
    """Others of the prompt that a sample is compared with, rounded up to even; default: all."""
    inconsistent: Literal["tie", "drop"] = "tie"
    """A pair whose winner changes with the order is half a win each, or does not count."""
    rate: Literal["counts", "bradley_terry"] = "counts"
    """How wins become a reward of 0 to 1."""

    def forgery(self, score: str) -> str:
        """A text cannot know its letter; where it is shown first, this is it."""
        return "Winner: A"

    def _needed(self) -> set[str]:
        return {"question", "first", "second"}


@judge("pairwise", engine=policy_of, compares=True)
class Pairwise:
    """Which of two samples of a prompt is better, asked in both orders; the win rate."""

    def __init__(self, options: PairwiseOptions, caller: Caller) -> None:
        self._options = options
        self._caller = caller

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample; the samples of a prompt stand side by side."""
        options = self._options
        order = groupby(range(len(samples)), key=lambda i: samples[i].prompt.id)
        prompts = [list(group) for _, group in order]
        met = [pair for members in prompts for pair in meetings(members, options.opponents)]
        pairs = [(i, j) for i, j in met if samples[i].completion != samples[j].completion]
        games = [game for i, j in pairs for game in ((i, j), (j, i))]
        answers = self._said([(samples[i], samples[j]) for i, j in games])
        said = dict(zip(games, answers, strict=True))
        winners: dict[Pair, Side | None] = {game: told.winner for game, told in said.items()}
        table = settle(len(samples), pairs, winners, options.inconsistent)
        rates = table.rates(prompts, options.rate).tolist()
        return [
            self._verdict(sample, rates[k], table, k, [a for g, a in said.items() if k in g])
            for k, sample in enumerate(samples)
        ]

    def _said(self, shown: Sequence[tuple[Sample, Sample]]) -> list[Said]:
        """Who won each game."""
        options = self._options
        asked = [(a.id, (self._message(a, b),)) for a, b in shown]
        if options.by == "likelihood":
            weighed = [Choices(id, m, ("A", "B"), options.opening) for id, m in asked]
            told = self._caller.weigh(weighed)
            return [Said(_likelier(a.logprobs), a.error, a.cost_usd) for a in told]
        calls = [Call(id, m, options.sampling()) for id, m in asked]
        told = ask(self._caller, calls, self._winner, options, REMINDER)
        return [Said(a.read[0] if a.read else None, a.error, a.cost_usd, a.unread) for a in told]

    def _message(self, one: Sample, other: Sample) -> Message:
        shown = {"first": one.completion, "second": other.completion}
        return self._options.message(one.prompt.text, shown)

    def _winner(self, text: str) -> Side | None:
        found = last(self._options.winner_pattern, text)
        return "A" if found == "A" else "B" if found == "B" else None

    def _verdict(
        self, sample: Sample, rate: float, table: Table, k: int, said: Sequence[Said]
    ) -> Verdict:
        cost = sum(answer.cost_usd for answer in said) / 2  # each game is of two
        did = table.standing(k)
        why = str(did) + next((f"; {a.unread}" for a in said if a.unread and not a.winner), "")
        if not math.isnan(rate):
            return sample.verdict(rate, rationale=why, cost_usd=cost)
        error = next((answer.error for answer in said if answer.error), "")
        status = "error" if error else "unparsed" if said and not did.inconsistent else "abstained"
        return sample.verdict(None, status=status, rationale=error or why, cost_usd=cost)


def _likelier(logprobs: Sequence[float | None]) -> Side | None:
    first, second = [-math.inf if p is None else p for p in logprobs] or [0.0, 0.0]
    return None if first == second else "A" if first > second else "B"
