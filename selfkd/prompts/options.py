"""What a config says about prompts."""

from typing import Any, Literal

from pydantic import Field, model_validator

from selfkd.options import Options


class PromptOptions(Options):
    """Where prompts come from and how they are used (config section `prompts`).

    A string stands for `{source: ...}`.
    """

    source: str = Field(min_length=1)
    """A .jsonl, .parquet or .csv file, a data set (org/name or a directory), reasoning_gym:TASK, or
    verifiers:TASKSET."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the task or taskset; of a data set: name, split, heldout_split, revision."""
    per_round: int | None = Field(None, ge=1)
    """Prompts of a round. Default: all of a file or data set; 64 of a task."""
    fresh: bool = True
    """Other prompts each round: new ones of a task, the next of a shuffled file (cycling)."""
    heldout: int | None = Field(None, ge=0)
    """Prompts set aside to measure on. Default: a tenth, at most 100; 100 of a task. 0: none."""
    heldout_source: str | None = Field(None, min_length=1)
    """A file or data set of held-out prompts (all of it, or the first `heldout`), in place of a
    split."""
    prompt_column: str | None = None
    """Column of the prompt: text or chat messages. Default: prompt, messages or question."""
    answer_column: str | None = None
    """Column of the reference answer. Default: answer, where there is one."""
    template: str | None = None
    """User message made of columns, as in "{question} Think first."; double any other brace."""
    system: str | None = None
    """System message of the prompts that bring none."""
    limit: int | None = Field(None, ge=1)
    """Read at most this many rows of a file or data set, from its start."""
    skip_bad: bool = False
    """Count and leave out rows of a file or data set that cannot be used, in place of stopping."""
    overlap: Literal["exclude", "error"] = "exclude"
    """Training prompts that are also in heldout_source: leave them out of training, or stop."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> "PromptOptions":
        own = [self.heldout_source, self.options.get("heldout_split")]
        if self.heldout == 0 and own != [None, None]:
            raise ValueError("heldout is 0, but held-out prompts are named")
        if None not in own:
            raise ValueError("heldout_source and heldout_split exclude each other")
        return self
