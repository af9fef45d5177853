"""The plugin's options: --attention-sinks.window and --attention-sinks.sinks, file table plugins.attention-sinks."""

from pydantic import BaseModel, ConfigDict, Field


class SinkOptions(BaseModel):
    """Every option has a default, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int = Field(1024, ge=1, description="A token attends to itself and the window - 1 tokens before it, ...")
    sinks: int = Field(4, ge=0, description="... and to this many tokens at the beginning of its sequence.")
