"""Figures of a round that tell early what goes wrong; `selfkd.alarms` judges them.

Notation: a round has prompts p, of each n_p scored samples with rewards r and lengths l in tokens.

prompts             prompts with a scored sample
reward_stderr       standard error of reward_mean over prompts: s(mean_p r) / sqrt(prompts); samples
                    of one prompt are alike, so that counting them apart would claim too much
reward_best         mean over prompts of max_p r, the best of a prompt's samples; for rewards of 0
                    and 1 this is pass@n. reward_best_stderr: s(max_p r) / sqrt(prompts)
reward_top          share of the scored samples with the highest reward of the round: near 1 the
                    judge is saturated
reward_length       correlation of reward and length within prompts: with R = r - mean_p r and
                    L = l - mean_p l, sum R L / sqrt(sum R^2 sum L^2); within, because hard prompts
                    have long answers and low rewards
similarity          mean Jaccard similarity |A & B| / |A | B| of the sets of adjacent token pairs of
                    two samples of a prompt, over the first 200 prompts and 8 samples of each
overlap             share of the held-out prompts that a prompt learnt from in this round repeats,
                    apart from case and white space
swap                {"pairs", "inconsistent"} of a judge that asks about pairs in both orders: those
                    of which both answers could be read, and the share whose winner changed with
                    the order; null for others
anchors             {"samples", "reward_mean", "reward_first", "shift", "stderr", "spread"} of
                    samples of the first round that the judge was shown again: mean reward now and
                    then, mean difference and its standard error, standard deviation of the first
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfkd.contests import swaps
from selfkd.rundir import (
    StepRecord,
    codes,
    of_verb,
    places,
    read_columns,
    round_steps,
)

Row = dict[str, Any]
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Prompt (a number), reward and length of each scored sample; a length is NaN where unknown."""

SIMILAR_PROMPTS = 200
SIMILAR_SAMPLES = 8
"""What `similarity` looks at: enough for two digits, and as quick for a million samples."""

REWARD_KEYS = ("prompts", "reward_stderr", "reward_best", "reward_best_stderr", "reward_top")


def reward_signals(generated: Sequence[StepRecord], judged: Sequence[StepRecord]) -> Row:
    """`prompts`, `reward_...` of a round's own samples; null where nothing is scored."""
    row: Row = dict.fromkeys((*REWARD_KEYS, "reward_length"))
    prompts, rewards, lengths = scored(generated, judged)
    if not len(rewards):
        return row
    means, best = _by_prompt(prompts, rewards)
    row |= {
        "prompts": len(means),
        "reward_stderr": _stderr(means),
        "reward_best": float(best.mean()),
        "reward_best_stderr": _stderr(best),
        "reward_top": float((rewards == rewards.max()).mean()),
        "reward_length": _within(prompts, rewards, lengths),
    }
    return row


def scored(generated: Sequence[StepRecord], judged: Sequence[StepRecord]) -> Scored:
    """What was scored of the samples of some steps, in the order of the verdicts."""
    samples = [path for step in generated for path in step.shards()]
    prompts = [pa.array([], pa.string())]
    rewards, lengths = [np.zeros(0)], [np.zeros(0)]
    for path in (p for step in judged for p in step.shards()):
        table = read_columns(path, ["sample_id", "prompt_id", "reward"])
        prompts += table.column("prompt_id").chunks
        rewards.append(table.column("reward").to_numpy().astype(np.float64))
        # A judge's shard has the samples of the shard of that number: one at a time is in memory.
        likely = sorted(samples, key=lambda p: p.name != path.name)
        lengths.append(_lengths(table.column("sample_id"), likely))
    reward = np.concatenate(rewards)
    finite = np.isfinite(reward)
    prompt = codes(pa.chunked_array(prompts))
    return prompt[finite], reward[finite], np.concatenate(lengths)[finite]


def _lengths(ids: pa.ChunkedArray, shards: Sequence[Path]) -> np.ndarray:
    """Tokens of these samples, NaN where unknown; stops reading when all are found."""
    lengths, missing = np.full(len(ids), np.nan), np.ones(len(ids), bool)
    for path in shards:
        if not missing.any():
            break
        table = read_columns(path, ["id", "tokens"])
        known = table.column("tokens").combine_chunks().value_lengths()
        place = places(ids, table.column("id")).fill_null(-1).to_numpy()
        lengths[place >= 0] = known.to_numpy(zero_copy_only=False)[place[place >= 0]]
        missing &= place < 0
    return lengths


def swap_figures(judged: Sequence[StepRecord]) -> Row | None:
    """How often the order decided, as the rationales of a judge that compares tell it."""

    def told(paths: Sequence[Path]) -> tuple[int, int] | None:
        texts = (read_columns(path, ["rationale"])["rationale"].to_pylist() for path in paths)
        return swaps(itertools.chain.from_iterable(texts))

    shards = [path for step in judged for path in step.shards()]
    if told(shards[:1]) is None:
        return None  # another judge: what it has written may be long
    pairs, inconsistent = told(shards) or (0, 0)
    return {"pairs": pairs, "inconsistent": inconsistent / pairs if pairs else None}


def _by_prompt(prompts: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and highest reward of each prompt."""
    count = np.bincount(prompts)
    total = np.bincount(prompts, weights=rewards)
    best = np.full(len(count), -np.inf)
    np.maximum.at(best, prompts, rewards)
    return total[count > 0] / count[count > 0], best[count > 0]


def _within(prompts: np.ndarray, rewards: np.ndarray, lengths: np.ndarray) -> float | None:
    """The correlation of what each sample's reward and length differ by from its prompt's means."""
    known = np.isfinite(lengths)
    if not known.any() or not lengths[known].any():
        return None
    _, prompts = np.unique(prompts[known], return_inverse=True)
    count = np.bincount(prompts)

    def apart(values: np.ndarray) -> np.ndarray:
        return values - (np.bincount(prompts, weights=values) / count)[prompts]

    r, size = apart(rewards[known]), apart(lengths[known])
    norm = float(np.sqrt((r @ r) * (size @ size)))
    return float(r @ size) / norm if norm > 1e-9 else None


def _stderr(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


# -- alike completions ----------------------------------------------------------------------------


def similarity(generated: Sequence[StepRecord]) -> float | None:
    """Mean Jaccard similarity between samples of a prompt; None where no prompt has two."""
    groups: dict[str, list[frozenset[tuple[int, int]]]] = {}
    full = 0
    for prompt, tokens in _tokens(generated):
        if prompt not in groups and len(groups) == SIMILAR_PROMPTS:
            if full == SIMILAR_PROMPTS:
                break
            continue
        group = groups.setdefault(prompt, [])
        if len(group) < SIMILAR_SAMPLES:
            group.append(frozenset(itertools.pairwise(tokens)))
            full += len(group) == SIMILAR_SAMPLES
    shares = [
        np.mean([len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs])
        for group in groups.values()
        if (pairs := list(itertools.combinations(group, 2)))
    ]
    return float(np.mean(shares)) if shares else None


def _tokens(generated: Sequence[StepRecord]) -> Iterator[tuple[str, list[int]]]:
    """Prompt and tokens of each sample that has any, shard by shard."""
    for path in (p for s in generated for p in s.shards()):
        table = read_columns(path, ["prompt_id", "tokens"])
        if any(len(chunk.flatten()) for chunk in table.column("tokens").chunks):
            rows = zip(table["prompt_id"], table["tokens"], strict=True)
            yield from ((prompt.as_py(), tokens.as_py()) for prompt, tokens in rows)


# -- prompts and anchors --------------------------------------------------------------------------


def overlap(own: Sequence[StepRecord], heldout: Sequence[StepRecord]) -> float | None:
    """Share of the held-out prompts that a prompt learnt from repeats; None without either."""
    measured, trained = of_verb(heldout, "prompts"), of_verb(own, "train")
    learnt = {i for s in trained for i in s.table(["prompt_id"])["prompt_id"].unique().to_pylist()}
    if not measured or not learnt:
        return None
    wanted = pc.field("id").isin(sorted(learnt))
    texts = [s.table(["id", "messages"]).filter(wanted) for s in of_verb(own, "prompts")]
    asked = {text for table in texts for text in _plain(table.column("messages"))}
    held = {text for s in measured for text in _plain(s.table(["messages"]).column("messages"))}
    return len(held & asked) / len(held) if held else None


def _plain(messages: pa.ChunkedArray) -> list[str]:
    """Messages without case and with single blanks."""
    return [re.sub(r"(\\[nrt]|\s)+", " ", text.lower()) for text in messages.to_pylist()]


def anchor_figures(judged: Sequence[StepRecord]) -> Row | None:
    """The rewards of anchors now against those of the first round; None where none were judged."""
    if not judged:
        return None
    run_dir = judged[0].path.parents[2]
    first = [s for s in of_verb(round_steps(run_dir, 0), "judge") if not s.label]
    then = {i: r for s in first for i, r in _rewards(s) if r is not None}
    both = [(r, then[i]) for s in judged for i, r in _rewards(s) if r is not None and i in then]
    if not both:
        return None
    now, before = np.array(both).T
    return {
        "samples": len(both),
        "reward_mean": float(now.mean()),
        "reward_first": float(before.mean()),
        "shift": float((now - before).mean()),
        "stderr": _stderr(now - before),
        "spread": float(before.std()),
    }


def _rewards(step: StepRecord) -> Iterator[tuple[str, float | None]]:
    table = step.table(["sample_id", "reward"])
    return zip(table["sample_id"].to_pylist(), table["reward"].to_pylist(), strict=True)
