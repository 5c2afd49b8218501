"""A premise entails a hypothesis: keeps paraphrases and summaries that say what their source says.

The probability of entailment by a natural-language-inference model, in one direction (a summary
follows from its source) or, with `both`, the lesser of the two (a paraphrase).
"""

import math

from pydantic import Field

from selfkd import Sample, Verdict, judge
from selfkd.classifier import Classifier, ClassifierOptions, check_model, label_index


class NliOptions(ClassifierOptions):
    """Options of the judge `nli`."""

    premise: str = "prompt"
    """What entails: prompt (its last user message), answer, completion, or a column's name."""
    hypothesis: str = "completion"
    """What is entailed, likewise."""
    both: bool = False
    """Ask for entailment in both directions, and take the lesser probability."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """Probability from which the reward is 1, else 0; default: the probability is the reward."""
    label: str = "entailment"
    """Name of the model's label for entailment."""


@judge("nli", ready=check_model)
class Nli:
    """The premise entails the hypothesis, by a natural-language-inference model."""

    def __init__(self, options: NliOptions) -> None:
        self._options = options
        self._model = Classifier(options)
        self._index = label_index(self._model.labels, options.label, options.model)

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample; texts too long for the model have no reward."""
        pairs = [self._texts(sample) for sample in samples]
        rows = [self._model.pair(first, second) for first, second in pairs]
        if self._options.both:
            rows += [self._model.pair(second, first) for first, second in pairs]
        found = [self._share(logits) for logits in self._model.logits(rows)]
        back = found[len(samples) :] or found
        return [self._verdict(*each) for each in zip(samples, found, back, strict=False)]

    def _texts(self, sample: Sample) -> tuple[str, str]:
        options = self._options
        return _text(sample, options.premise), _text(sample, options.hypothesis)

    def _share(self, logits: list[float] | None) -> float | None:
        if logits is None:
            return None
        highest = max(logits)
        weights = [math.exp(value - highest) for value in logits]
        return weights[self._index] / sum(weights)

    def _verdict(self, sample: Sample, there: float | None, back: float | None) -> Verdict:
        if there is None or back is None:
            why = f"too long: the model takes {self._model.longest} tokens"
            return sample.verdict(None, status="abstained", rationale=why)
        share = min(there, back)
        said = f"entailment {there:.3f}" + (f", back {back:.3f}" if self._options.both else "")
        threshold = self._options.threshold
        return sample.verdict(share if threshold is None else share >= threshold, rationale=said)


def _text(sample: Sample, name: str) -> str:
    known = {"prompt": sample.prompt.text, "completion": sample.completion, "answer": sample.answer}
    text = known[name] if name in known else sample.columns.get(name)
    if not isinstance(text, str):
        raise ValueError(f"the prompt has no {name}, or it is no text")
    return text
