"""Where prompts come from: files, data sets and reasoning-gym tasks, with a held-out part."""

from selfkd.prompts.options import PromptOptions
from selfkd.prompts.source import PromptSource, open_prompts, require_answers

__all__ = ["PromptOptions", "PromptSource", "open_prompts", "require_answers"]
