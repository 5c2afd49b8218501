"""The base of everything that people write as options."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Frozen, closed to unknown keys, and documented by the text under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
