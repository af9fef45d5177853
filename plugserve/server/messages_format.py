"""Anthropic's way to write a message, whole or as typed events. Knows nothing of how it comes about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from plugserve.core.contracts import RequestUsage
from plugserve.server.choice import Choice, Piece
from plugserve.server.error_responses import anthropic_error_object, describe
from plugserve.server.formats import Answer, ResponseFacts
from plugserve.server.streaming import typed_event

_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "abort": "pause_turn"}


class MessagesFormat:
    """/v1/messages."""

    def __init__(self, facts: ResponseFacts) -> None:
        self.facts = facts

    def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""
        piece = answers[0].piece
        body = self.head(usage) | _ending(piece)
        body["content"] = [{"type": "text", "text": piece.text, "citations": None}]
        return orjson.dumps(body)

    def head(self, usage: RequestUsage) -> dict[str, Any]:
        """A message without content."""
        return {
            "id": self.facts.id,
            "type": "message",
            "role": "assistant",
            "model": self.facts.model,
            "content": [],
            "container": None,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": _usage(usage) | {"cache_creation": None, "inference_geo": None, "service_tier": "standard"},
        }


class MessagesStream:
    """The events of one message. usage tells the tokens so far."""

    def __init__(self, format: MessagesFormat, usage: Callable[[], RequestUsage]) -> None:
        self._format = format
        self._usage = usage
        self._last = Piece()
        self._is_open = False

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""
        data = b"" if self._is_open else self._opening()
        for _, piece in batch:
            self._last = piece
            if piece.text:
                delta = {"type": "text_delta", "text": piece.text}
                data += typed_event({"type": "content_block_delta", "index": 0, "delta": delta})
        return data

    def _opening(self) -> bytes:
        self._is_open = True
        block = {"type": "text", "text": "", "citations": None}
        usage = self._usage()
        told = RequestUsage(usage.num_prompt_tokens, 0, usage.num_cached_tokens)
        return (
            typed_event({"type": "message_start", "message": self._format.head(told)})
            + typed_event({"type": "content_block_start", "index": 0, "content_block": block})
            + typed_event({"type": "ping"})
        )

    async def ending(self, usage: RequestUsage) -> bytes:
        """What comes after the last piece."""
        return (
            typed_event({"type": "content_block_stop", "index": 0})
            + typed_event({"type": "message_delta", "delta": _ending(self._last), "usage": _usage(usage)})
            + typed_event({"type": "message_stop"})
        )

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""
        status, body = describe(error)
        return typed_event(anthropic_error_object(status, body["error"]["message"]))


def _ending(piece: Piece) -> dict[str, Any]:
    if isinstance(piece.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": piece.stop_reason}
    return {"stop_reason": _STOP_REASONS.get(piece.finish_reason or "", "end_turn"), "stop_sequence": None}


def _usage(usage: RequestUsage) -> dict[str, Any]:
    """Anthropic counts cached tokens apart from input_tokens."""
    return {
        "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.num_cached_tokens,
        "output_tokens": usage.num_generated_tokens,
        "output_tokens_details": None,
        "server_tool_use": None,
    }
