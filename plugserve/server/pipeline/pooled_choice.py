"""One prompt that becomes a vector instead of an answer."""

from __future__ import annotations

from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.errors import EngineUnavailableError
from plugserve.server.pipeline.choice import Piece
from plugserve.server.worker.token_stream import OutputDelta


class PooledChoice:
    """The engine's one delta gives the one piece, whose vector is raw little-endian float32."""

    num_tokens = 0
    num_cached_tokens = 0
    num_reasoning_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.queue_s = 0.0

    def push(self, delta: OutputDelta) -> Piece:
        """Raises EngineUnavailableError for a sequence that ended without a vector, because the server stops."""
        if delta.pooled is None:
            raise EngineUnavailableError("The server is shutting down; send the request to another one.")
        self.queue_s = delta.queue_s or 0.0
        self.finish_reason = delta.finish_reason
        return Piece(finish_reason=delta.finish_reason, vector=delta.pooled)
