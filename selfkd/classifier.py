"""A sequence-classification model in the process of a judge: reward models, entailment."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from selfkd.chat import render
from selfkd.errors import UsageError
from selfkd.hardware import compute_dtype
from selfkd.judging import JudgeOptions
from selfkd.models import check_model_dir, resolve_model
from selfkd.records import Message

Device = Literal["auto", "cpu", "cuda"]
Row = dict[str, list[int]]
"""Token ids of one text (`input_ids`, perhaps `token_type_ids`)."""


class ClassifierOptions(JudgeOptions):
    """Options of every judge with a classifier."""

    model: str
    """A model directory (relative to the config if it begins with ./ or ../), or a hub id."""
    batch_size: int = Field(16, ge=1)
    """Texts in one forward."""
    device: Device = "auto"
    """auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto takes bfloat16 where the hardware multiplies it fast."""


def check_model(options: ClassifierOptions) -> None:
    """UsageError unless the model is there or can be fetched; what `@judge(ready=...)` takes."""
    check_model_dir(resolve_model(options.model))


class Classifier:
    """Scores of texts by a Hugging Face `...ForSequenceClassification`, in batches."""

    def __init__(self, options: ClassifierOptions) -> None:
        """Loads the model; UsageError where it is none, or has no trained classification head."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path = resolve_model(options.model)
        check_model_dir(path)
        self._batch_size = options.batch_size
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=getattr(torch, compute_dtype(options.dtype)),
            use_safetensors=True,
            output_loading_info=True,
        )
        if loaded["missing_keys"]:
            # transformers would go on with random weights, and so with random rewards.
            raise UsageError(
                f"the model has no weights for {min(loaded['missing_keys'])}: it is no classifier",
                where=str(path),
                remedy="give a reward model or an entailment model, not a language model",
            )
        has_gpu = torch.cuda.is_available()
        device = ("cuda" if has_gpu else "cpu") if options.device == "auto" else options.device
        self._model: Any = model.to(device).eval()  # type: ignore[arg-type]
        self.labels: list[str] = [name for _, name in sorted(self._model.config.id2label.items())]
        """Names of the outputs, in order."""

    @property
    def longest(self) -> int:
        """Most tokens of a text."""
        positions = getattr(self._model.config, "max_position_embeddings", None) or 2**31
        return min(positions, self._tokenizer.model_max_length)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer can render a conversation."""
        return bool(self._tokenizer.chat_template)

    def conversation(self, messages: Sequence[Message]) -> Row:
        """A conversation that ends with an answer, by the tokenizer's own template."""
        return {"input_ids": render(self._tokenizer, messages, to_complete=False)}

    def pair(self, first: str, second: str) -> Row:
        """Two texts; the text of a special token in one is ordinary text."""
        encoded = self._tokenizer(first, second, split_special_tokens=True)
        return {k: encoded[k] for k in ("input_ids", "token_type_ids") if k in encoded}

    def logits(self, rows: Sequence[Row]) -> list[list[float] | None]:
        """One value for each label, for each row in order; None for a row that is too long."""
        found: list[list[float] | None] = [None] * len(rows)
        fits = [i for i, row in enumerate(rows) if len(row["input_ids"]) <= self.longest]
        fits.sort(key=lambda i: len(rows[i]["input_ids"]))
        for batch in _slices(fits, self._batch_size):
            for i, values in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                found[i] = values
        return found

    def _forward(self, rows: Sequence[Row]) -> list[list[float]]:
        import torch

        pad = self._pad({token for row in rows for token in row["input_ids"]})
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": pad, "token_type_ids": 0}
        given = {
            key: [row[key] + [fill[key]] * (longest - len(row[key])) for row in rows]
            for key in rows[0]
        }
        given["attention_mask"] = [
            [1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows
        ]
        tensors = {k: torch.tensor(v, device=self._model.device) for k, v in given.items()}
        with torch.no_grad():
            return self._model(**tensors).logits.float().tolist()

    def _pad(self, used: set[int]) -> int:
        """The token to pad with.

        Decoder models look for the last token that is not padding. Where padding is also the token
        that ends a turn they would look too far back, so then a token is taken that no row has.
        """
        pad = self._tokenizer.pad_token_id
        if pad is None or pad in used:
            pad = next(token for token in range(len(self._tokenizer)) if token not in used)
        self._model.config.pad_token_id = pad
        return pad


def _slices(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def label_index(labels: Sequence[str], wanted: str, where: str) -> int:
    """Position of a label, by name whatever its case; UsageError lists what there is."""
    for index, label in enumerate(labels):
        if label.casefold() == wanted.casefold():
            return index
    raise no_label(labels, wanted, where)


def no_label(labels: Iterable[str], wanted: str, where: str) -> UsageError:
    """The error for a label that a model does not have."""
    return UsageError(
        f"the model has no label {wanted!r}",
        where=where,
        remedy=f"set label to one of: {', '.join(labels)}",
    )
