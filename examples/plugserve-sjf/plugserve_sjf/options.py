"""The plugin's options: flags --sjf.aging-tokens and --sjf.max-wait-s, file table plugins.sjf."""

from pydantic import BaseModel, ConfigDict, Field


class SjfOptions(BaseModel):
    """Every option has a default, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    aging_tokens: float = Field(
        32, ge=0, description="A job counts as this many tokens shorter for each second since it arrived."
    )
    max_wait_s: float = Field(
        30, ge=0, description="A job older than this goes before all younger ones, however long it is."
    )
