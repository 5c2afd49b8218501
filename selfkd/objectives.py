"""What a round can train on: an objective names its data, its view and its options."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from selfkd.chat import render
from selfkd.errors import UsageError
from selfkd.records import Example, Prompt, Sample
from selfkd.tables import Kept, Pairs, Samples, Scored
from selfkd.views import View, plain

Which = Literal["base", "previous", "best"]
"""A policy of the run: the base model, the round's own, or the best one so far."""

Guide = Which | Literal["teacher"]
"""Whom a training is held to or drawn towards: a policy of the run, or the model that `run.teacher`
added to it."""


class Objective(Protocol):
    """What `round.train` asks of its argument."""

    name: ClassVar[str]
    missing: ClassVar[str]
    """What a round did not do where there is no example."""

    @property
    def ref(self) -> Guide | None:
        """The policy whose predictions the training is held to or drawn towards, if there is one
        that stays the same meanwhile."""
        ...

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples; plain values."""
        ...

    def examples(self, tokenizer: Any) -> Iterable[Example]:
        """What is trained on, in the same order every time."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class SFT:
    """Supervised fine-tuning on kept samples: maximise sum of weight x log p(completion | prompt).

    The prompt is rendered under `view`, whatever view the samples were generated under; the
    completion is the exact tokens that were sampled, end-of-sequence included.
    """

    name: ClassVar[str] = "sft"
    missing: ClassVar[str] = "kept no sample"
    data: tuple[Kept, ...]
    view: View

    def __init__(self, *data: Kept, view: View = plain) -> None:
        freeze(self, data=data, view=view)

    @property
    def ref(self) -> None:
        """No policy anchors it."""

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        return [kept.step.fingerprint for kept in self.data]

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples."""
        return {"view": self.view.name}

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """One example per kept sample that is not empty."""
        prompt = Rendered(tokenizer, self.view)
        for sample, weight in kept_samples(self.data):
            yield Example(
                id=f"sft-{sample.id}",
                prompt_id=sample.prompt.id,
                sample_ids=(sample.id,),
                prompt_tokens=prompt(sample),
                completion_tokens=sample.tokens,
                weight=weight,
            )


@dataclass(frozen=True, slots=True, init=False)
class Mixture:
    """Supervised fine-tuning on several data sets, each under a view of its own (LMSI)."""

    name: ClassVar[str] = "sft"
    missing: ClassVar[str] = "kept no sample"
    parts: tuple[SFT, ...]

    def __init__(self, *parts: SFT) -> None:
        freeze(self, parts=parts)

    @property
    def ref(self) -> None:
        """No policy anchors it."""

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        return [fingerprint for part in self.parts for fingerprint in part.inputs()]

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples."""
        return {"view": [part.view.name for part in self.parts]}

    def examples(self, tokenizer: Any) -> Iterator[Example]:
        """The examples of every part; the same sample under two views gives two."""
        for number, part in enumerate(self.parts):
            for example in part.examples(tokenizer):
                yield replace(example, id=f"{example.id}-{number}")


@dataclass(frozen=True, slots=True, init=False)
class DPO:
    """Direct preference optimisation on pairs (Rafailov et al. 2023, arXiv:2305.18290).

    With the log-ratio r(y) = log p(y | x) / p_ref(y | x), summed over tokens, a pair's loss is

        -(1 - e) log sigmoid(beta (r(chosen) - r(rejected)))
        - e log sigmoid(beta (r(rejected) - r(chosen))) - alpha log p(chosen | x) / |chosen|

    with e = `label_smoothing`. `alpha` = 1 gives Iterative RPO (arXiv:2404.19733, equation 1), and
    alpha = 0 with lambda for beta is SPIN's loss too (arXiv:2401.01335, equation 4.7). The loss of
    a step is the mean over its pairs, weighted.
    """

    name: ClassVar[str] = "dpo"
    missing: ClassVar[str] = "made no pair"
    data: tuple[Pairs, ...]
    beta: float
    alpha: float
    label_smoothing: float
    ref: Which
    view: View

    def __init__(
        self,
        *data: Pairs,
        beta: float = 0.1,
        alpha: float = 0.0,
        label_smoothing: float = 0.0,
        ref: Which = "previous",
        view: View = plain,
    ) -> None:
        if beta <= 0 or alpha < 0 or not 0 <= label_smoothing < 0.5:
            raise UsageError(
                f"DPO(beta={beta}, alpha={alpha}, label_smoothing={label_smoothing}) is no loss",
                remedy="beta > 0, alpha >= 0 and 0 <= label_smoothing < 0.5",
            )
        freeze(self, data=data, beta=beta, alpha=alpha, ref=ref, view=view)
        freeze(self, label_smoothing=label_smoothing)

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        return [pairs.step.fingerprint for pairs in self.data]

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples."""
        names = ("beta", "alpha", "label_smoothing")
        return {name: getattr(self, name) for name in names} | {"view": self.view.name}

    def examples(self, tokenizer: Any) -> list[Example]:
        """One example a pair; a pair that was made twice gives two."""
        rows = [row for pairs in self.data for row in pairs.rows()]
        prompt = Rendered(tokenizer, self.view)
        return [
            Example(
                id=f"dpo-{number}-{chosen.id}",
                prompt_id=pair.prompt_id,
                sample_ids=(chosen.id, rejected.id),
                prompt_tokens=prompt(chosen),
                completion_tokens=chosen.tokens,
                rejected_tokens=rejected.tokens,
                weight=pair.weight,
            )
            for number, (chosen, rejected, pair) in enumerate(rows)
            if chosen.tokens and rejected.tokens
        ]


@dataclass(frozen=True, slots=True, init=False)
class KTO:
    """Kahneman-Tversky optimisation on verdicts without pairs (arXiv:2402.01306, equation 8).

    A kept sample is desirable where its reward is at least `desirable`, else undesirable. With r as
    in `DPO` and z the mean log-ratio of mismatched completions, at least 0, the losses are

        weight_desirable   (1 - sigmoid(beta (r - z)))    of a desirable sample, and
        weight_undesirable (1 - sigmoid(beta (z - r)))    of an undesirable one.
    """

    name: ClassVar[str] = "kto"
    missing: ClassVar[str] = "kept no sample"
    data: tuple[Kept, ...]
    desirable: float
    beta: float
    weights: tuple[float, float]
    ref: Which
    view: View

    def __init__(
        self,
        *data: Kept,
        desirable: float = 1.0,
        beta: float = 0.1,
        weights: tuple[float, float] = (1.0, 1.0),
        ref: Which = "previous",
        view: View = plain,
    ) -> None:
        if beta <= 0 or min(weights) < 0:
            raise UsageError(
                f"KTO(beta={beta}, weights={weights}) is no loss",
                remedy="beta > 0 and no negative weight",
            )
        freeze(self, data=data, desirable=desirable, beta=beta, weights=weights)
        freeze(self, ref=ref, view=view)

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        return [kept.step.fingerprint for kept in self.data]

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples."""
        desirable, undesirable = self.weights
        return {
            "beta": self.beta,
            "desirable": self.desirable,
            "weight_desirable": desirable,
            "weight_undesirable": undesirable,
            "view": self.view.name,
        }

    def examples(self, tokenizer: Any) -> list[Example]:
        """One example a kept sample with a reward; an undesirable one is only `rejected_tokens`."""
        rewards = {
            v.sample_id: v.reward
            for kept in self.data
            if isinstance(kept.scored, Scored)
            for v in kept.scored.verdicts.values()
        }
        prompt = Rendered(tokenizer, self.view)
        found = []
        for sample, weight in kept_samples(self.data):
            reward = rewards.get(sample.id)
            if reward is None:
                continue
            good = reward >= self.desirable
            found.append(
                Example(
                    id=f"kto-{sample.id}",
                    prompt_id=sample.prompt.id,
                    sample_ids=(sample.id,),
                    prompt_tokens=prompt(sample),
                    completion_tokens=sample.tokens if good else (),
                    rejected_tokens=None if good else sample.tokens,
                    weight=weight,
                )
            )
        return found


def freeze(objective: object, **values: Any) -> None:
    """Set fields of a frozen objective, for its `__init__`."""
    for name, value in values.items():
        object.__setattr__(objective, name, value)


def kept_samples(data: Sequence[Kept | Samples]) -> Iterator[tuple[Sample, float]]:
    """The samples that are not empty, with their weights."""
    for part in data:
        rows = part if isinstance(part, Kept) else ((s, 1.0) for s in part.rows)
        yield from ((sample, weight) for sample, weight in rows if sample.tokens)


class Rendered:
    """Tokens of samples' prompts under a view; those of one prompt usually come together."""

    def __init__(self, tokenizer: Any, view: View) -> None:
        self._tokenizer = tokenizer
        self._view = view
        self._last: tuple[Prompt | None, tuple[int, ...]] = (None, ())

    def __call__(self, sample: Sample) -> tuple[int, ...]:
        if self._last[0] is not sample.prompt:
            tokens = render(self._tokenizer, list(self._view(sample.prompt)))
            self._last = (sample.prompt, tuple(tokens))
        return self._last[1]
