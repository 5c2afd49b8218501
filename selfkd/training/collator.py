"""Rows of tokens as one padded batch, with labels where a completion is to be predicted."""

from collections.abc import Sequence
from typing import Any

import torch

IGNORED = -100
"""Label of positions without loss."""


class Collator:
    """Pads rows on the right to the longest of the batch."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` of shape (B, T), `weights` of shape (B,)."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self._pad)
        labels = torch.full((len(rows), longest), IGNORED)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            length, start = len(row["input_ids"]), row["prompt_length"]
            ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, start:length] = ids[i, start:length]
            mask[i, :length] = 1
        weights = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}
