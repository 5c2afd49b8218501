"""Lengths and diversity of completions by their token ids, shard by shard.

A shard is reduced to numbers as it is read, so that millions of samples fit into memory.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from selfkd.rundir import codes, counts, token_counts


class Tokens:
    """What one shard of samples contributes, small enough to hold for millions of samples."""

    COLUMNS = ("prompt_id", "tokens", "finish")

    def __init__(self, table: pa.Table) -> None:
        tokens = table.column("tokens").combine_chunks()
        values = tokens.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        self.lengths = token_counts(table)
        self.prompts = table.column("prompt_id")
        self.truncated = counts(table.column("finish")).get("length", 0)
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        self.hashes = _hash_rows(values, starts, ends)
        pairs = values[:-1] << 32 | values[1:]
        inside = np.ones(max(0, len(values) - 1), dtype=bool)
        boundaries = ends[(ends > 0) & (ends < len(values))] - 1
        inside[boundaries] = False
        self.pairs = int(inside.sum())
        self.distinct_pairs = pa.array(pairs[inside]).unique()


def _hash_rows(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row `values[start:end]`: the sum of mixed (token, position) pairs."""
    position = np.arange(len(values), dtype=np.int64) - np.repeat(starts, ends - starts)
    mixed = (values << 32 | position).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    totals = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed ^ (mixed >> np.uint64(31)))])
    return totals[ends] - totals[starts]


def distinct_2(shards: Sequence[Tokens]) -> float | None:
    """Distinct pairs of adjacent tokens / all such pairs; None where there is no pair."""
    pairs = sum(s.pairs for s in shards)
    distinct = pa.chunked_array([s.distinct_pairs for s in shards]).unique()
    return len(distinct) / pairs if pairs else None


def unique(shards: Sequence[Tokens]) -> float | None:
    """Share of distinct completions a prompt, averaged over prompts with at least two samples."""
    prompts = codes(pa.chunked_array([c for s in shards for c in s.prompts.chunks], pa.string()))
    hashes = np.concatenate([s.hashes for s in shards])
    order = np.lexsort((hashes, prompts))
    prompts, hashes = prompts[order], hashes[order]
    fresh = np.ones(len(prompts), dtype=bool)
    fresh[1:] = (prompts[1:] != prompts[:-1]) | (hashes[1:] != hashes[:-1])
    sizes = np.bincount(prompts)
    shares = np.bincount(prompts, weights=fresh)[sizes > 1] / sizes[sizes > 1]
    return float(shares.mean()) if len(shares) else None
