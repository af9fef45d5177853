"""One sequence's outputs on their way from the engine's client to its request; both live on the worker's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.errors import EngineError
from plugserve.core.wire.sequence_times import SequenceTimes


@dataclass(slots=True)
class OutputDelta:
    """New tokens of one sequence since the last delta. finish_reason is None until the last one.

    ends_with_stop_token: the last token is a stop token, which is not part of the text. logprobs has one entry
    a token when asked for; prompt_logprobs, queue_s and num_cached_tokens come once, with the first tokens. pooled is
    the vector (raw float32) of a sequence that asked for one instead of tokens.
    """

    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    queue_s: float | None = None
    num_cached_tokens: int | None = None
    ends_with_stop_token: bool = False
    pooled: bytes | None = None

    def extend(self, later: OutputDelta) -> None:
        """Append the next delta."""
        self.token_ids.extend(later.token_ids)
        self.finish_reason = later.finish_reason
        self.ends_with_stop_token = later.ends_with_stop_token
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        if later.prompt_logprobs is not None:
            self.prompt_logprobs = later.prompt_logprobs
        if later.queue_s is not None:
            self.queue_s = later.queue_s
        if later.num_cached_tokens is not None:
            self.num_cached_tokens = later.num_cached_tokens


class TokenStream:
    """One sequence being generated. The client delivers OutputDeltas; the request takes them.

    take merges all deltas that wait. waker, shared by the sequences of one request, is set when a delta or an error
    arrives. times are the engine's, once the sequence has ended there. Closing early calls on_close once; closing a
    finished stream does nothing.
    """

    def __init__(self, id: int, on_close: Callable[[int], None], waker: asyncio.Event) -> None:
        self.id = id
        self._on_close = on_close
        self._waker = waker
        self._waiting: OutputDelta | None = None
        self._error: EngineError | None = None
        self._is_finished = False  # the engine has sent the last delta, or the error
        self.times: SequenceTimes | None = None
        self._is_ended = False  # the reader has taken the last delta, or closed

    def deliver(self, delta: OutputDelta) -> None:
        """Called by the client. Ignored after a close."""
        if self._is_ended or self._is_finished:
            return
        if self._waiting is None:
            self._waiting = delta
        else:
            self._waiting.extend(delta)
        self._is_finished = delta.finish_reason is not None
        self._waker.set()

    def fail(self, error: EngineError) -> None:
        """Called by the client: the reader gets the deltas that wait, then the error."""
        if self._is_ended or self._is_finished:
            return
        self._error = error
        self._is_finished = True
        self._waker.set()

    def take(self) -> OutputDelta | None:
        """The deltas that have arrived, merged, or None; never waits. Raises EngineError when the sequence failed."""
        delta, self._waiting = self._waiting, None
        if delta is None and self._error is not None:
            self._is_ended = True
            raise self._error
        if delta is not None and delta.finish_reason is not None:
            self._is_ended = True
        elif self._error is not None:
            self._waker.set()  # the error still waits behind this delta
        return delta

    @property
    def has_something(self) -> bool:
        """take would return a delta or raise."""
        return self._waiting is not None or (self._error is not None and not self._is_ended)

    def close(self) -> None:
        """Stop reading; the engine frees the sequence's memory unless it has finished. Never waits."""
        self._is_ended = True
        self._waiting = None
        if not self._is_finished:
            self._is_finished = True
            self._on_close(self.id)
