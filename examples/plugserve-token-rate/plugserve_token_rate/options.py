"""The plugin's options: --token-rate.tokens-per-minute and --token-rate.burst-tokens, file table plugins.token-rate."""

from pydantic import BaseModel, ConfigDict, Field


class TokenRateOptions(BaseModel):
    """Every option has a default, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens_per_minute: float = Field(60_000, gt=0, description="Tokens added to each API key's bucket per minute.")
    burst_tokens: float = Field(20_000, gt=0, description="Capacity of a bucket: tokens that a key may use at once.")
