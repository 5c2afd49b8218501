"""What a round can train on: an objective names its data, its view and its options."""

from dataclasses import dataclass
from typing import Any, ClassVar

from selfkd.chat import render
from selfkd.records import Example
from selfkd.tables import Kept
from selfkd.views import View, plain


@dataclass(frozen=True, slots=True, init=False)
class SFT:
    """Supervised fine-tuning on kept samples: maximise sum of weight x log p(completion | prompt).

    The prompt is rendered under `view`, whatever view the samples were generated under; the
    completion is the exact tokens that were sampled, end-of-sequence included.
    """

    name: ClassVar[str] = "sft"
    data: tuple[Kept, ...]
    view: View

    def __init__(self, *data: Kept, view: View = plain) -> None:
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "view", view)

    def inputs(self) -> list[str]:
        """Fingerprints of the recorded steps this trains on."""
        return [kept.step.fingerprint for kept in self.data]

    def settings(self) -> dict[str, Any]:
        """What the trainer needs to know besides the examples."""
        return {"view": self.view.name}

    def examples(self, tokenizer: Any) -> list[Example]:
        """One example per kept sample that is not empty."""
        return [
            Example(
                id=f"sft-{sample.id}",
                prompt_id=sample.prompt.id,
                sample_ids=(sample.id,),
                prompt_tokens=tuple(render(tokenizer, list(self.view(sample.prompt)))),
                completion_tokens=sample.tokens,
                weight=weight,
            )
            for kept in self.data
            for sample, weight in kept.rows()
            if sample.tokens
        ]
