"""Distillation as an objective: who teaches, under which view, and by which divergence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, Literal, get_args

from selfkd.errors import DataError, UsageError
from selfkd.objectives import Guide, Rendered, freeze, kept_samples
from selfkd.records import Example, Sample, content_hash
from selfkd.tables import Kept, Samples, Taught
from selfkd.views import View, plain

TeacherName = Literal["base", "previous", "best", "teacher", "live", "ema"]
"""Who teaches: a policy of the run or an added model (`Guide`), or else the policy itself as it is
being trained, or its moving average."""


@dataclass(frozen=True, slots=True, init=False)
class GKD:
    """Generalised knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649, equation 2).

    With p the teacher's and q the student's next-token distribution, both after the tokens of a
    sample, the loss of a step is the weighted mean over its completion tokens

        L = sum_i w_i sum_t w_it D(p(. | x'_i, y_i<t), q(. | x_i, y_i<t)) / sum_i w_i sum_t w_it

    with D as in `selfkd.kernels`: `kind`, `beta` and `temperature`. No gradient goes through the
    sampling, nor through the teacher. Who made the samples decides what is learnt: the student's
    own are on-policy, given ones or a teacher's make it supervised.

    The student sees the prompt x under `view`, the teacher x' under `teacher_view`. A privileged
    view, with the answer, a demonstration or feedback in it, makes the policy its own teacher.
    `columns` may hold more columns to fill in there, by sample id, such as feedback on that sample.

    Teachers: `base`, `previous`, `best` and `teacher` (see `run.teacher`) stay the same and are
    asked once, before the first step. `live` is the policy as it is in each step; `ema` its moving
    average over the steps of a round, e <- ema_decay e + (1 - ema_decay) w. What `round.teach`
    returns is a served one: its likeliest tokens are known, and D is a lower bound
    (`selfkd.kernels.sparse_linear_divergence`).

    Weights: w_i is a kept sample's, 1 for others. w_it is 0 for the first `skip_tokens` tokens of a
    completion, else 1; `token_weights` has other factors for them, by sample id, one a token, at
    least 0.
    `max_staleness` refuses samples of an earlier state of the policy, in optimiser steps.
    `keep_states` keeps in the run what a teacher that stays the same has answered, so that a later
    training on the same samples, stored ones or a data set's, need not ask again.
    """

    name: ClassVar[str] = "gkd"
    missing: ClassVar[str] = "kept no sample"
    data: tuple[Kept | Samples, ...]
    teacher: TeacherName | Taught
    kind: str
    beta: float
    temperature: float
    ema_decay: float
    skip_tokens: int
    max_staleness: int | None
    view: View
    teacher_view: View
    columns: Mapping[str, Mapping[str, str]]
    token_weights: Mapping[str, Sequence[float]]
    keep_states: bool

    def __init__(
        self,
        *data: Kept | Samples,
        teacher: TeacherName | Taught,
        kind: str = "jsd",
        beta: float = 0.5,
        temperature: float = 1.0,
        ema_decay: float = 0.99,
        skip_tokens: int = 0,
        max_staleness: int | None = None,
        view: View = plain,
        teacher_view: View | None = None,
        columns: Mapping[str, Mapping[str, str]] | None = None,
        token_weights: Mapping[str, Sequence[float]] | None = None,
        keep_states: bool = False,
    ) -> None:
        from selfkd.kernels.measures import measure

        measure(kind, beta, temperature)
        served = isinstance(teacher, Taught)
        if served and (temperature != 1 or teacher_view):
            raise UsageError(
                "a served teacher was asked at temperature 1 and under the view given to teach()",
                remedy="leave temperature and teacher_view out of GKD(...)",
            )
        if not served and teacher not in get_args(TeacherName):
            raise UsageError(
                f"GKD(teacher={teacher!r}) names no teacher",
                remedy="give base, previous, best, live, ema, or what run.teacher() returns",
            )
        if not 0 <= ema_decay < 1 or skip_tokens < 0:
            raise UsageError(
                f"GKD(ema_decay={ema_decay}, skip_tokens={skip_tokens}) is no loss",
                remedy="0 <= ema_decay < 1 and skip_tokens >= 0",
            )
        freeze(self, data=data, teacher=teacher, kind=kind, beta=beta, temperature=temperature)
        freeze(self, ema_decay=ema_decay, skip_tokens=skip_tokens, max_staleness=max_staleness)
        freeze(self, view=view, teacher_view=teacher_view or view, columns=columns or {})
        freeze(self, token_weights=token_weights or {}, keep_states=keep_states)

    @property
    def ref(self) -> Guide | None:
        """The teacher, where it stays the same."""
        if isinstance(self.teacher, Taught) or self.teacher in ("live", "ema"):
            return None
        return self.teacher

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        taught = [self.teacher] if isinstance(self.teacher, Taught) else []
        return [part.step.fingerprint for part in (*self.data, *taught)]

    def writers(self) -> Iterator[str]:
        """The policy that wrote each sample."""
        return (sample.policy for sample, _ in kept_samples(self.data))

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples."""
        names = ("kind", "beta", "temperature", "ema_decay", "skip_tokens")
        weighed = {"token_weights": content_hash(self.token_weights)} if self.token_weights else {}
        kept = {"keep_states": True} if self.keep_states else {}
        return {name: getattr(self, name) for name in names} | {
            **weighed,
            **kept,
            "teacher": "served" if isinstance(self.teacher, Taught) else self.teacher,
            "view": self.view.name,
            "teacher_view": self.teacher_view.name,
            "columns": content_hash(self.columns),
        }

    def examples(self, tokenizer: Any) -> list[Example]:
        """One example a sample that is not empty."""
        prompt, shown = Rendered(tokenizer, self.view), Rendered(tokenizer, self.teacher_view)
        return [
            Example(
                id=f"gkd-{sample.id}",
                prompt_id=sample.prompt.id,
                sample_ids=(sample.id,),
                prompt_tokens=prompt(sample),
                completion_tokens=sample.tokens,
                weight=weight,
                token_weights=self._token_weights(sample),
                teacher_prompt_tokens=self._teacher_prompt(shown, sample),
                **self._teaching(sample),
            )
            for sample, weight in kept_samples(self.data)
        ]

    def _teaching(self, sample: Sample) -> dict[str, Any]:
        if not isinstance(self.teacher, Taught):
            return {}
        told = self.teacher.teachings.get(sample.id)
        if told is None:
            raise DataError(
                f"the teacher was not asked about sample {sample.id}",
                where=str(self.teacher.step.path),
                remedy="teach() the same samples that GKD(...) trains on",
            )
        return {"teacher_ids": told.ids, "teacher_logprobs": told.logprobs}

    def _token_weights(self, sample: Sample) -> tuple[float, ...] | None:
        given = self.token_weights.get(sample.id)
        skipped = min(self.skip_tokens, len(sample.tokens))
        if given is None and not skipped:
            return None
        weights = (1.0,) * len(sample.tokens) if given is None else tuple(map(float, given))
        if len(weights) != len(sample.tokens) or not all(isfinite(w) and w >= 0 for w in weights):
            raise DataError(
                f"token_weights of sample {sample.id} are not {len(sample.tokens)} finite numbers "
                "of at least 0",
                where="GKD",
                remedy="give one weight for each of the sample's tokens",
            )
        return (0.0,) * skipped + weights[skipped:]

    def _teacher_prompt(self, shown: Rendered, sample: Sample) -> tuple[int, ...] | None:
        if self.teacher_view.name == self.view.name:
            return None
        more = {**sample.prompt.columns, **self.columns.get(sample.id, {})}
        return shown(replace(sample, prompt=replace(sample.prompt, columns=more)))
