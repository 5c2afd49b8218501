"""The rows that flow through a run, and their Arrow schemas. Imports nothing else of selfkd."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import pyarrow as pa

SCHEMA_VERSION = 1

T = TypeVar("T")

Message = dict[str, str]
"""A chat message: `{"role": "user", "content": "..."}`."""

Finish = Literal["stop", "length", "error"]
Status = Literal["ok", "unparsed", "error", "timeout", "abstained"]


def content_hash(value: Any, length: int = 16) -> str:
    """Hex digest of `value` as canonical JSON: the identity of prompts, options and steps."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One task: the messages a policy completes, the reference answer if any, other columns."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, messages: Sequence[Message] | str, answer: str | None = None, **columns: Any
    ) -> "Prompt":
        """Build a prompt; a plain string is one user message. The id hashes messages and answer."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        messages = tuple(dict(m) for m in messages)
        return cls(content_hash([messages, answer]), messages, answer, columns)

    @property
    def text(self) -> str:
        """The last user message: what a judge usually wants to see."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, with the prompt it answers and the policy version that made it."""

    id: str
    prompt: Prompt
    index: int
    completion: str
    tokens: tuple[int, ...] = ()
    finish: Finish = "stop"
    policy: str = "base"
    view: str = "plain"
    round: int = 0
    parents: tuple[str, ...] = ()
    logprob: float | None = None

    @property
    def answer(self) -> str | None:
        """The prompt's reference answer."""
        return self.prompt.answer

    @property
    def columns(self) -> Mapping[str, Any]:
        """The prompt's other columns."""
        return self.prompt.columns

    def verdict(
        self,
        reward: float | None,
        *,
        status: Status = "ok",
        answer: str | None = None,
        rationale: str = "",
        cost_usd: float = 0.0,
    ) -> "Verdict":
        """A judge's verdict on this sample; the pool that runs the judge fills in its name."""
        return Verdict(self.id, self.prompt.id, "", reward, status, answer, rationale, cost_usd)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of a sample: a finite reward, or the status that says why there is none."""

    sample_id: str
    prompt_id: str
    judge: str
    reward: float | None
    status: Status = "ok"
    answer: str | None = None
    """The answer the judge read out of the completion, where it reads one."""
    rationale: str = ""
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a scored sample is kept for training, and the rule and reason."""

    sample_id: str
    prompt_id: str
    kept: bool
    reason: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples of one prompt, the first to be preferred; `margin` is the gap in reward."""

    prompt_id: str
    chosen_id: str
    rejected_id: str
    margin: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Teaching:
    """The K likeliest tokens at each of a sample's T tokens, by a served teacher: T times K."""

    sample_id: str
    prompt_id: str
    teacher: str
    ids: tuple[int, ...]
    """-1 where the teacher told of fewer."""
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """What a trainer consumes: prompt and completion tokens, and the samples they come from.

    `completion_tokens` are to become likelier, `rejected_tokens` less likely; a pair has both, an
    unpaired rejected sample (KTO) has no completion tokens. A teacher (GKD) says what should follow
    each token of the completion.
    """

    id: str
    prompt_id: str
    sample_ids: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]
    rejected_tokens: tuple[int, ...] | None = None
    weight: float = 1.0
    token_weights: tuple[float, ...] | None = None
    """Weight of each completion token, times `weight`; None: all 1."""
    teacher_prompt_tokens: tuple[int, ...] | None = None
    """What the teacher sees in place of `prompt_tokens`; None: the same."""
    teacher_ids: tuple[int, ...] | None = None
    """Of a served teacher: as in `Teaching`."""
    teacher_logprobs: tuple[float, ...] | None = None


_TOKENS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_STRINGS = pa.list_(pa.string())

PROMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.string()),
        ("answer", pa.string()),
        ("columns", pa.string()),
    ]
)
"""`messages` and `columns` are JSON text."""

SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("completion", pa.string()),
        ("tokens", _TOKENS),
        ("finish", pa.string()),
        ("policy", pa.string()),
        ("view", pa.string()),
        ("round", pa.int32()),
        ("parents", _STRINGS),
        ("logprob", pa.float64()),
    ]
)

VERDICTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt_id", pa.string()),
        ("judge", pa.string()),
        ("reward", pa.float64()),
        ("status", pa.string()),
        ("answer", pa.string()),
        ("rationale", pa.string()),
        ("cost_usd", pa.float64()),
    ]
)

DECISIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt_id", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("weight", pa.float64()),
    ]
)

PAIRS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("margin", pa.float64()),
        ("weight", pa.float64()),
    ]
)

EXAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("sample_ids", _STRINGS),
        ("prompt_tokens", _TOKENS),
        ("completion_tokens", _TOKENS),
        ("rejected_tokens", _TOKENS),
        ("weight", pa.float64()),
        ("token_weights", _FLOATS),
        ("teacher_prompt_tokens", _TOKENS),
        ("teacher_ids", _TOKENS),
        ("teacher_logprobs", _FLOATS),
    ]
)

TEACHINGS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt_id", pa.string()),
        ("teacher", pa.string()),
        ("ids", _TOKENS),
        ("logprobs", _FLOATS),
    ]
)


def _utf8(text: str | None) -> str | None:
    # Parquet strings are UTF-8 and a lone surrogate has no UTF-8 form: keep it, visibly escaped.
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def prompts_table(prompts: Iterable[Prompt]) -> pa.Table:
    """Prompts as an Arrow table of schema `PROMPTS`."""
    return pa.Table.from_pylist(
        [
            {
                "id": p.id,
                "messages": json.dumps(p.messages),
                "answer": _utf8(p.answer),
                "columns": json.dumps(dict(p.columns), default=str),
            }
            for p in prompts
        ],
        schema=PROMPTS,
    )


def read_prompts(table: pa.Table) -> list[Prompt]:
    """The inverse of `prompts_table`."""
    return [
        Prompt(r["id"], tuple(json.loads(r["messages"])), r["answer"], json.loads(r["columns"]))
        for r in table.to_pylist()
    ]


def samples_table(samples: Iterable[Sample]) -> pa.Table:
    """Samples as an Arrow table of schema `SAMPLES` (prompts are kept apart, by id)."""
    return pa.Table.from_pylist(
        [
            {name: getattr(s, name) for name in SAMPLES.names if name != "prompt_id"}
            | {"prompt_id": s.prompt.id, "completion": _utf8(s.completion)}
            for s in samples
        ],
        schema=SAMPLES,
    )


def read_samples(table: pa.Table, prompts: Mapping[str, Prompt]) -> list[Sample]:
    """The inverse of `samples_table`; `prompts` maps prompt ids to prompts."""
    rows = []
    for r in table.to_pylist():
        prompt = prompts[r.pop("prompt_id")]
        r["tokens"], r["parents"] = tuple(r["tokens"]), tuple(r["parents"])
        rows.append(Sample(prompt=prompt, **r))
    return rows


def rows_table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Verdicts, decisions, pairs, teachings or examples as an Arrow table of `schema`."""
    columns = []
    for f in schema:
        values = [getattr(row, f.name) for row in rows]
        if f.type == pa.string():
            values = [_utf8(v) for v in values]
        columns.append(pa.array(values, type=f.type))
    return pa.Table.from_arrays(columns, schema=schema)


def read_rows(table: pa.Table, row_type: type[T]) -> list[T]:
    """The inverse of `rows_table`, for rows of `row_type`.

    A column that older records do not have yet takes its default.
    """
    known = [f.name for f in fields(row_type)]  # type: ignore[arg-type]
    names = [name for name in known if name in table.column_names]
    return [
        row_type(**{n: tuple(r[n]) if isinstance(r[n], list) else r[n] for n in names})
        for r in table.to_pylist()
    ]
