"""Encoder runners: batches of whole inputs, each of which becomes one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from plugserve.core.contracts.runner import RunnerInfo

MODELS_OWN: Final = "model"
"""The pooling of a request that leaves it to the model's files; a cross-encoder's head, too."""


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One input. second_start is the index of the first token of a pair's second text, 0 for a single text or for
    models that don't tell the two apart. pooling is MODELS_OWN or one of the model's poolings."""

    token_ids: Sequence[int]
    second_start: int = 0
    pooling: str = MODELS_OWN


@runtime_checkable
class EncoderRunner(Protocol):
    """Runs an encoder: a model that reads inputs as a whole, keeps nothing between batches, and needs no KV cache.

    Called from the engine's thread, one batch at a time.
    """

    def load(self) -> RunnerInfo:
        """Load weights. num_blocks is 0. Raises ModelError or ConfigError with one clear line."""

    def encode(self, batch: Sequence[EncoderInput]) -> list[bytes]:
        """The vector of each input as raw little-endian float32: pooled hidden states, or the head's outputs. Inputs
        come in an order in which lengths are near each other."""

    def close(self) -> None:
        """Free the device's memory. Called once."""
