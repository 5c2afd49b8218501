"""What a config says about alarms: when each is told, and what a run then does."""

from typing import Literal

from pydantic import Field, field_validator

from selfkd.options import Options

AlarmName = Literal[
    "reward_hacking",
    "pass_decline",
    "diversity_collapse",
    "length_drift",
    "length_bias",
    "low_acceptance",
    "high_acceptance",
    "judge_failures",
    "judge_controls",
    "judge_saturation",
    "judge_drift",
    "low_coverage",
    "truncation",
    "overlap",
]


class AlarmConfig(Options):
    """What counts as wrong in a round, and which alarms do more than warn."""

    reward_hacking: float = Field(2.0, ge=0)
    """Standard errors by which held-out must be below its best round so far, and the judge's reward
    above what it was there."""
    pass_decline: float = Field(2.0, ge=0)
    """Standard errors by which the highest pass@k must be below the first round's while pass@1 is
    above it."""
    diversity_collapse: float = Field(0.3, gt=0, lt=1)
    """Share of the first round's distinct completions that is lost, where the best of a prompt's
    samples is no better for it."""
    length_drift: float = Field(0.5, gt=0)
    """Growth of the mean length since the first round, or twice that of the last round, where
    held-out is no better for it."""
    length_bias: float = Field(0.3, gt=0, le=1)
    """Correlation of reward and length within prompts, where completions grow and held-out is no
    better for it."""
    low_acceptance: float = Field(0.02, ge=0, le=1)
    """Share of the samples kept, below which there is next to nothing to learn from."""
    high_acceptance: float = Field(0.98, ge=0, le=1)
    """Share of the samples kept, above which the judge hardly chooses."""
    judge_failures: float = Field(0.05, ge=0, le=1)
    """Share of the samples without a reward."""
    judge_saturation: float = Field(0.95, gt=0, le=1)
    """Share of the samples with the highest reward of the round."""
    judge_drift: float = Field(0.25, gt=0)
    """Change of the mean reward of the anchors (`judging.anchors`), in standard deviations of their
    first rewards, and beyond two standard errors."""
    low_coverage: float = Field(0.2, ge=0, le=1)
    """Share of the prompts with a kept sample, below which the model learns the easy ones."""
    truncation: float = Field(0.5, ge=0, le=1)
    """Share of the completions cut at the token limit."""
    overlap: float = Field(0.0, ge=0, le=1)
    """Share of the held-out prompts that were also learnt from."""
    stop: list[AlarmName] = Field(default_factory=list)
    """Alarms that end the run at the end of their round."""
    rollback: list[AlarmName] = Field(default_factory=list)
    """Alarms after which the run goes on from its best policy on held-out; without one it ends."""
    off: list[AlarmName] = Field(default_factory=list)
    """Alarms that are not told."""

    @field_validator("stop", "rollback", "off", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value
