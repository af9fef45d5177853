"""Pieces of answers become server-sent events. Knows when a chunk is sent, not how it is written (formats does).

A choice's first output goes out at once; after that one piece is held back until the next one comes, so that the last
chunk with output is the one that carries the finish_reason even when the last token (an EOS) has no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import orjson

from plugserve.core.contracts.requests import RequestUsage
from plugserve.server.api.error_responses import error_event
from plugserve.server.api.formats import Format, usage_object
from plugserve.server.pipeline.choice import Choice, Piece

DONE: Final = b"data: [DONE]\n\n"


def typed_event(body: Mapping[str, Any]) -> bytes:
    """A server-sent event that is named after its body's type."""
    return b"event: %s\ndata: %s\n\n" % (str(body["type"]).encode(), orjson.dumps(body))


class Events(Protocol):
    """How one endpoint writes a stream."""

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""

    async def ending(self, usage: RequestUsage) -> bytes:
        """What comes after the last piece."""

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""


class EventStream:
    """The events of one OpenAI chat or completion. prompt_token_ids: each choice's prompt, where the client wants its
    token ids.

    usage_in_stream: ordinary chunks say usage null and one more at the end says all; usage_in_every_chunk: each says
    what has been told so far, and what num_cached_tokens returns.
    """

    def __init__(
        self,
        format: Format,
        *,
        num_prompt_tokens: int,
        prompt_token_ids: Mapping[int, list[int]],
        usage_in_stream: bool = False,
        usage_in_every_chunk: bool = False,
        num_cached_tokens: Callable[[], int] = int,
    ) -> None:
        self._format = format
        self._num_prompt_tokens = num_prompt_tokens
        self._prompt_token_ids = dict(prompt_token_ids)
        self._in_stream = usage_in_stream
        self._in_every_chunk = usage_in_every_chunk
        self._tail = b',"usage":null}\n\n' if usage_in_stream else b"}\n\n"
        self._num_cached_tokens = num_cached_tokens
        self._num_told = 0
        self._opened: set[int] = set()
        self._shown: set[int] = set()
        self._held: dict[int, Piece] = {}

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""
        return b"".join(event for choice, piece in batch for event in self._of_piece(choice.index, piece))

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off: what is held back, the error and the end mark."""
        events = [self._chunk(index, piece) for index, piece in self._held.items() if piece.has_output]
        self._held.clear()
        return b"".join(events) + error_event(error) + DONE

    async def ending(self, usage: RequestUsage) -> bytes:
        """The usage event, where asked for, and the end mark."""
        if not self._in_stream:
            return DONE
        return self._format.without_choices() + b',"usage":' + orjson.dumps(usage_object(usage)) + b"}\n\n" + DONE

    def _of_piece(self, index: int, piece: Piece) -> list[bytes]:
        events = self._opening(index)
        held = self._held.pop(index, None)
        if held is not None and (not held.has_output or (piece.finish_reason is not None and not piece.has_output)):
            held.extend(piece)
            piece = held
        elif held is not None:
            events.append(self._chunk(index, held))
        if piece.finish_reason is None and (index in self._shown or not piece.has_output):
            self._held[index] = piece
        else:
            events.append(self._chunk(index, piece))
        return events

    def _opening(self, index: int) -> list[bytes]:
        if index in self._opened:
            return []
        self._opened.add(index)
        opening = self._format.opening(index)
        return [self._with_usage(opening)] if opening else []

    def _chunk(self, index: int, piece: Piece) -> bytes:
        self._shown.add(index)
        self._num_told += len(piece.token_ids) - piece.num_echoed
        return self._with_usage(self._format.chunk(index, piece, self._prompt_token_ids.pop(index, None)))

    def _with_usage(self, event: bytes) -> bytes:
        if not self._in_every_chunk:
            return event + self._tail
        usage = usage_object(RequestUsage(self._num_prompt_tokens, self._num_told, self._num_cached_tokens()))
        return event + b',"usage":' + orjson.dumps(usage) + b"}\n\n"
