"""Handles on what verbs record: lazy, streamed shard by shard, readable again at any time.

Rows stay in Arrow tables on disk. Python objects are made of them where a judge, a rule or a loop
looks at them, a shard or a block at a time, so that a round may have millions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from selfkd.batches import Batch
from selfkd.errors import UsageError
from selfkd.ledger import Step, broken
from selfkd.records import (
    DECISIONS,
    Pair,
    Prompt,
    Sample,
    Teaching,
    Verdict,
    read_prompts,
    read_rows,
)
from selfkd.rules import Candidates, Rule
from selfkd.rundir import places, token_counts
from selfkd.weights import Weighting

BLOCK = 1 << 14
"""Samples, or a few more, that a rule sees at once where it may look at prompts one by one."""


class Samples:
    """Completions of a `generate`; missing shards are made while they are iterated."""

    def __init__(
        self,
        step: Step,
        prompts: Sequence[Prompt],
        n: int,
        produce: Callable[[], Iterator[tuple[int, pa.Table]]],
        policy: str,
    ) -> None:
        self.step = step
        self.policy = policy
        """Name of the policy that writes them."""
        self.count = len(prompts) * n
        self.prompts = list(prompts)
        self._produce = produce
        self._by_id = {p.id: p for p in prompts}

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Every shard once: recorded ones first, then the missing ones as they finish."""
        for index in self.step.shards():
            yield index, self.step.read(index)
        if not self.step.finished:
            yield from self._produce()

    def batches(self) -> Iterator[tuple[int, list[Sample]]]:
        """As `tables`, in objects."""
        return ((index, self.read(table)) for index, table in self.tables())

    def read(self, table: pa.Table) -> list[Sample]:
        """Rows of this step as samples."""
        return self.batch(table).samples

    def batch(self, table: pa.Table) -> Batch:
        """Rows of this step, to be judged together."""
        return Batch.read(table, self._by_id)

    def wait(self) -> None:
        """Make what is still missing."""
        if not self.step.finished:
            for _ in self.tables():
                pass

    @cached_property
    def rows(self) -> list[Sample]:
        """All samples in shard order."""
        tables = dict(self.tables())
        return [sample for index in sorted(tables) for sample in self.read(tables[index])]

    def candidates(self) -> Candidates:
        """The samples in columns, unscored."""
        return joined([self])


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

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """All of them."""
        parts, seen = [], 0
        for _, table in self._samples.tables():
            parts.append(table.take(list(range(-seen % self._stride, len(table), self._stride))))
            seen += len(table)
        yield 0, pa.concat_tables(parts)


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
        return joined([self])

    def failed_prompts(self) -> list[Prompt]:
        """Prompts none of whose samples has reward 1, in order (STaR rationalises these)."""
        table = self._rewards()
        solved = table.filter(pa.array(table.column("reward").to_numpy() >= 1))
        ids = set(solved.column("prompt_id").unique().to_pylist())
        return [p for p in self.samples.prompts if p.id not in ids]

    def mean_reward(self) -> float:
        """Mean reward of the scored samples; 0 if there is none."""
        rewards = self._rewards().column("reward").to_numpy()
        return float(rewards.mean()) if len(rewards) else 0.0

    def mean_rewards(self) -> dict[str, float]:
        """Prompt id -> mean reward of its scored samples."""
        means = (
            self._rewards().group_by("prompt_id", use_threads=False).aggregate([("reward", "mean")])
        )
        ids, values = means.column("prompt_id"), means.column("reward_mean")
        return dict(zip(ids.to_pylist(), values.to_pylist(), strict=True))

    def _rewards(self) -> pa.Table:
        """Prompt id and reward of the scored samples."""
        self.wait()
        columns = ["prompt_id", "reward"]
        empty = pa.schema([("prompt_id", pa.string()), ("reward", pa.float64())]).empty_table()
        tables = [self.step.read(index, columns) for index in self.step.shards()]
        return pa.concat_tables([empty, *tables]).drop_null()


class _Rows:
    """The rows of a step in order, as many at a time as one asks for."""

    def __init__(self, step: Step, columns: Sequence[str]) -> None:
        self._step = step
        self._tables = (step.read(index, columns) for index in step.shards())
        self._rest: pa.Table | None = None

    def of(self, samples: pa.ChunkedArray) -> pa.Table:
        """The next rows, which must be those of the samples with these ids."""
        parts, count = [], len(samples)
        while count:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._tables, None)
            if self._rest is None:
                break
            parts.append(self._rest.slice(0, count))
            self._rest = self._rest.slice(len(parts[-1]))
            count -= len(parts[-1])
        table = pa.concat_tables(parts) if parts else None
        if table is None or not table.column("sample_id").equals(samples):
            raise broken(self._step.path, "its rows are not those of the samples it was made from")
        return table


COLUMNS = ("id", "prompt_id", "completion", "finish", "tokens", "policy")
"""What rules look at of a sample."""


def blocks(part: Scored | Samples) -> Iterator[Candidates]:
    """Recorded samples in shard order, about `BLOCK` at once; a prompt's are never taken apart."""
    part.wait()
    samples = samples_of(part).step
    verdicts = None
    if isinstance(part, Scored):
        verdicts = _Rows(part.step, ("sample_id", "reward", "answer"))
    waiting: list[pa.Table] = []
    shards = samples.shards()
    for index in shards:
        waiting.append(samples.read(index, COLUMNS))
        if sum(map(len, waiting)) >= BLOCK or index == shards[-1]:
            table = pa.concat_tables(waiting)
            waiting = []
            rows = None if verdicts is None else verdicts.of(table.column("id"))
            yield _candidates(table, rows)


def joined(parts: Sequence[Scored | Samples]) -> Candidates:
    """The candidates of several steps as one table, in order."""
    # Judged ones first: judging takes the samples as they come.
    for part in sorted(parts, key=lambda part: isinstance(part, Samples)):
        part.wait()
    return Candidates.concatenated([block for part in parts for block in blocks(part)])


def _candidates(samples: pa.Table, verdicts: pa.Table | None) -> Candidates:
    count = samples.num_rows
    columns = {name: samples.column(name).to_pylist() for name in COLUMNS if name != "tokens"}
    rewards, answers = np.full(count, np.nan), [None] * count
    if verdicts is not None:
        rewards = verdicts.column("reward").to_numpy()
        answers = verdicts.column("answer").to_pylist()
    return Candidates(
        sample_ids=columns["id"],
        prompt_ids=columns["prompt_id"],
        completions=columns["completion"],
        answers=answers,
        finishes=columns["finish"],
        lengths=token_counts(samples),
        rewards=rewards.astype(np.float64),
        policies=columns["policy"],
    )


def decisions(
    part: Scored | Samples, rule: Rule, seed: Sequence[int], weights: Weighting | None = None
) -> Iterator[pa.Table]:
    """What a rule, and then a weighting, make of the samples of a step, as rows of `DECISIONS`.

    Every block has a generator of its own, seeded by `seed` and its number.
    """
    found = [joined([part])] if rule.across else blocks(part)
    for number, candidates in enumerate(found):
        yield decide(candidates, rule, weights, np.random.default_rng([*seed, number]))


def decide(
    candidates: Candidates, rule: Rule, weights: Weighting | None, rng: np.random.Generator
) -> pa.Table:
    """`decisions` about some candidates; what weighs nothing is dropped too."""
    reasons = rule.apply(candidates, rng)
    weighed = weights.weigh(candidates).tolist() if weights else [1.0] * len(candidates)
    for i, weight in enumerate(weighed):
        if reasons[i] is None and not weight > 0:
            reasons[i] = "weight 0" if weight == 0 else "no reward to weigh it by"
    columns = [
        candidates.sample_ids,
        candidates.prompt_ids,
        [reason is None for reason in reasons],
        [reason or "kept" for reason in reasons],
        [1.0 if reason else w for reason, w in zip(reasons, weighed, strict=True)],
    ]
    arrays = [pa.array(v, type=f.type) for v, f in zip(columns, DECISIONS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=DECISIONS)


def samples_of(part: Scored | Samples) -> Samples:
    """The samples behind a step, judged or not."""
    return part.samples if isinstance(part, Scored) else part


@dataclass(frozen=True, slots=True)
class Kept:
    """The samples a rule kept, with their weights."""

    step: Step
    scored: "Scored | Samples"

    def __iter__(self) -> Iterator[tuple[Sample, float]]:
        """Kept samples with their weights, in order, read shard by shard."""
        samples = samples_of(self.scored)
        decided = _Rows(self.step, ("sample_id", "kept", "weight"))
        for index in samples.step.shards():
            table = samples.step.read(index)
            rows = decided.of(table.column("id"))
            kept = rows.column("kept")
            weights = rows.column("weight").filter(kept).to_pylist()
            yield from zip(samples.read(table.filter(kept)), weights, strict=True)

    def rows(self) -> list[tuple[Sample, float]]:
        """All of them at once."""
        return list(self)


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
        named = [id for p in self.pairs for id in (p.chosen_id, p.rejected_id)]
        wanted = pa.chunked_array([named], type=pa.string())
        found: dict[str, Sample] = {}
        for samples in map(samples_of, self.parts):
            for _, table in samples.tables():
                named_here = places(table.column("id"), wanted).is_valid()
                found |= {s.id: s for s in samples.read(table.filter(named_here))}
        return [(found[p.chosen_id], found[p.rejected_id], p) for p in self.pairs]
