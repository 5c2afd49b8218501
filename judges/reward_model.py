"""The score of a reward model: any Hugging Face sequence-classification model.

A model with one output gives a reward of any size (Bradley-Terry reward models, Ouyang et al. 2022,
arXiv:2203.02155); of one with several, `label` says which. The reward is the raw output or its
probability.
"""

import math
from typing import Literal

from selfkd import Sample, Verdict, judge
from selfkd.classifier import Classifier, ClassifierOptions, Row, check_model, label_index, no_label


class RewardModelOptions(ClassifierOptions):
    """Options of the judge `reward_model`."""

    form: Literal["auto", "chat", "pair"] = "auto"
    """What the model reads: the conversation by its chat template, or question and answer as two
    texts; auto takes the template where it has one."""
    label: str = ""
    """Name of the output that is the reward, where there are several."""
    scale: Literal["logit", "probability"] = "logit"
    """The output as it is, or its probability: sigmoid of one output, softmax of several."""


@judge("reward_model", ready=check_model)
class RewardModel:
    """The score of a reward model: any Hugging Face sequence-classification model."""

    def __init__(self, options: RewardModelOptions) -> None:
        self._options = options
        self._model = Classifier(options)
        labels = self._model.labels
        if len(labels) > 1 and not options.label:
            raise no_label(labels, options.label, options.model)
        self._index = label_index(labels, options.label, options.model) if options.label else 0
        has_template = self._model.has_template
        self._chat = has_template if options.form == "auto" else options.form == "chat"

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample; one that is too long for the model has no reward."""
        rows = [self._row(sample) for sample in samples]
        found = self._model.logits(rows)
        return [self._verdict(*each) for each in zip(samples, rows, found, strict=True)]

    def _row(self, sample: Sample) -> Row:
        if not self._chat:
            return self._model.pair(sample.prompt.text, sample.completion)
        answer = {"role": "assistant", "content": sample.completion}
        return self._model.conversation([*sample.prompt.messages, answer])

    def _verdict(self, sample: Sample, row: Row, logits: list[float] | None) -> Verdict:
        if logits is None:
            size = len(row["input_ids"])
            why = f"too long: {size} tokens, the reward model takes {self._model.longest}"
            return sample.verdict(None, status="abstained", rationale=why)
        value = logits[self._index]
        if self._options.scale == "logit":
            return sample.verdict(value)
        # Of one output: against an output of 0, which is the sigmoid.
        others = logits if len(logits) > 1 else [value, 0.0]
        return sample.verdict(1 / sum(math.exp(min(other - value, 700.0)) for other in others))
