"""Handles on what verbs record: lazy, streamed shard by shard, readable again at any time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from selfkd.errors import UsageError
from selfkd.ledger import Step
from selfkd.records import (
    Decision,
    Pair,
    Prompt,
    Sample,
    Teaching,
    Verdict,
    read_prompts,
    read_rows,
    read_samples,
)
from selfkd.rules import Candidates

Batch = tuple[int, list[Sample]]
"""Shard index and its samples."""


class Samples:
    """Completions of a `generate`; missing shards are made while they are iterated."""

    def __init__(
        self,
        step: Step,
        prompts: Sequence[Prompt],
        n: int,
        produce: Callable[[], Iterator[Batch]],
        policy: str,
    ) -> None:
        self.step = step
        self.policy = policy
        """Name of the policy that writes them."""
        self.count = len(prompts) * n
        self.prompts = list(prompts)
        self._produce = produce
        self._by_id = {p.id: p for p in prompts}

    def batches(self) -> Iterator[Batch]:
        """Every shard once: recorded ones first, then the missing ones as they finish."""
        for index in self.step.shards():
            yield index, read_samples(self.step.read(index), self._by_id)
        if not self.step.finished:
            yield from self._produce()

    def wait(self) -> None:
        """Make what is still missing."""
        if not self.step.finished:
            for _ in self.batches():
                pass

    @cached_property
    def rows(self) -> list[Sample]:
        """All samples in shard order."""
        batches = dict(self.batches())
        return [sample for index in sorted(batches) for sample in batches[index]]

    def candidates(self) -> Candidates:
        """The samples in columns, unscored."""
        return _columns(self.rows, {})


@dataclass(frozen=True, slots=True)
class Judgements:
    """Where the judgements of a judge that asks the sampler are recorded: prompts and samples."""

    prompts: Step
    step: Step

    def samples(self) -> Samples:
        """The judgements as samples; both steps are finished."""
        prompts = [p for table in self.prompts.tables() for p in read_prompts(table)]
        summary = self.step.summary
        return Samples(self.step, prompts, summary["draws"], lambda: iter(()), summary["policy"])


class Anchors(Samples):
    """Up to `most` samples of a step, evenly spread over it, as one batch."""

    def __init__(self, samples: Samples, most: int) -> None:
        super().__init__(samples.step, samples.prompts, 1, lambda: iter(()), samples.policy)
        self._stride = -(-samples.count // most) or 1
        self._samples = samples
        self.count = -(-samples.count // self._stride)

    def batches(self) -> Iterator[Batch]:
        """All of them."""
        rows = (sample for _, batch in self._samples.batches() for sample in batch)
        yield 0, list(islice(rows, 0, None, self._stride))


class Scored:
    """Samples with their verdicts; judging happens while this is iterated."""

    def __init__(
        self,
        step: Step,
        samples: Samples,
        produce: Callable[[], None],
        told: Judgements | None = None,
    ) -> None:
        self.step = step
        self.samples = samples
        self.then: Callable[[], None] | None = None
        """Called once when all are judged, recorded or not, before anybody uses the verdicts."""
        self._produce = produce
        self._told = told

    def wait(self) -> None:
        """Have what is still missing judged."""
        if not self.step.finished:
            self._produce()
        if then := self.then:
            self.then = None
            then()

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Sample id -> verdict; waits for all of them."""
        self.wait()
        rows = [v for table in self.step.tables() for v in read_rows(table, Verdict)]
        return {v.sample_id: v for v in rows}

    @cached_property
    def judgements(self) -> Samples:
        """What the judge was told, as samples: the prompt of each asks about one sample.

        A prompt's id is that of the sample judged (`selfkd.judgements`). Waits for all of them;
        UsageError where the judge writes none.
        """
        if self._told is None:
            raise UsageError(
                f"the judge of step {self.step.name} writes no judgements",
                remedy="choose one that does, such as self_reward",
            )
        self.wait()
        return self._told.samples()

    def candidates(self) -> Candidates:
        """The scored samples in columns, for rules."""
        verdicts = self.verdicts  # first: it takes the samples as they come
        return _columns(self.samples.rows, verdicts)

    def failed_prompts(self) -> list[Prompt]:
        """Prompts none of whose samples has reward 1, in order (STaR rationalises these)."""
        solved = {v.prompt_id for v in self.verdicts.values() if (v.reward or 0) >= 1}
        return [p for p in self.samples.prompts if p.id not in solved]

    def mean_reward(self) -> float:
        """Mean reward of the scored samples; 0 if there is none."""
        rewards = [v.reward for v in self.verdicts.values() if v.reward is not None]
        return float(np.mean(rewards)) if rewards else 0.0

    def mean_rewards(self) -> dict[str, float]:
        """Prompt id -> mean reward of its scored samples."""
        groups: dict[str, list[float]] = {}
        for verdict in self.verdicts.values():
            if verdict.reward is not None:
                groups.setdefault(verdict.prompt_id, []).append(verdict.reward)
        return {prompt: float(np.mean(rewards)) for prompt, rewards in groups.items()}


def _columns(samples: Sequence[Sample], verdicts: Mapping[str, Verdict]) -> Candidates:
    found = [verdicts.get(s.id) for s in samples]
    rewards = [np.nan if v is None or v.reward is None else v.reward for v in found]
    return Candidates(
        sample_ids=[s.id for s in samples],
        prompt_ids=[s.prompt.id for s in samples],
        completions=[s.completion for s in samples],
        answers=[v.answer if v else None for v in found],
        finishes=[s.finish for s in samples],
        lengths=np.array([len(s.tokens) for s in samples], dtype=np.int64),
        rewards=np.array(rewards, dtype=np.float64),
        policies=[s.policy for s in samples],
    )


def joined(parts: Sequence[Scored | Samples]) -> Candidates:
    """The candidates of several steps as one table, in order."""
    # Verdicts first: judging takes the samples as they come.
    judged = [part.verdicts for part in parts if isinstance(part, Scored)]
    samples = [sample for part in parts for sample in samples_of(part).rows]
    return _columns(samples, {id: verdict for found in judged for id, verdict in found.items()})


def samples_of(part: Scored | Samples) -> Samples:
    """The samples behind a step, judged or not."""
    return part.samples if isinstance(part, Scored) else part


@dataclass(frozen=True, slots=True)
class Kept:
    """The samples a rule kept, with their weights."""

    step: Step
    scored: "Scored | Samples"
    decisions: Sequence[Decision]

    def rows(self) -> list[tuple[Sample, float]]:
        """Kept samples with their weights, in order."""
        weights = {d.sample_id: d.weight for d in self.decisions if d.kept}
        return [(s, weights[s.id]) for s in samples_of(self.scored).rows if s.id in weights]


@dataclass(frozen=True, slots=True)
class Taught:
    """Samples with the likeliest tokens that a served teacher gave at each of theirs."""

    step: Step
    samples: Samples
    teachings: Mapping[str, Teaching]
    """By sample id."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples compared with one another, as a pair rule chose them."""

    step: Step
    parts: Sequence[Scored | Samples]
    pairs: Sequence[Pair]

    def rows(self) -> list[tuple[Sample, Sample, Pair]]:
        """(chosen, rejected, pair), in order."""
        samples = {s.id: s for part in self.parts for s in samples_of(part).rows}
        return [(samples[p.chosen_id], samples[p.rejected_id], p) for p in self.pairs]
