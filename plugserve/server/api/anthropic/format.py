"""Answers as Anthropic's messages, whole or as typed events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from plugserve.core.contracts.answers import AnswerDelta, ToolCallDelta
from plugserve.core.contracts.requests import RequestUsage
from plugserve.server.api.error_responses import anthropic_error_object, describe
from plugserve.server.api.typed_events import parsed_of, typed_event
from plugserve.server.pipeline.choice import Choice, Piece
from plugserve.server.pipeline.finish_reason import anthropic_stop_reason
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts
from plugserve.server.text.tool_calls import WholeCall, whole_calls

_CALLER: Final = {"type": "direct"}


class MessagesWriter:
    """A plain message."""

    def __init__(self, facts: ResponseFacts) -> None:
        self._facts = facts

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response. An incomplete call is omitted; stop_reason is max_tokens then."""
        piece = answers[0].piece
        body = self.head(usage) | _ending(piece)
        body["content"] = _blocks(parsed_of(piece))
        return orjson.dumps(body)

    def head(self, usage: RequestUsage) -> dict[str, Any]:
        """A message without content."""
        return {
            "id": self._facts.id,
            "type": "message",
            "role": "assistant",
            "model": self._facts.model,
            "content": [],
            "container": None,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": _usage(usage) | {"cache_creation": None, "inference_geo": None, "service_tier": "standard"},
        }


class MessagesStream:
    """The events of one message."""

    def __init__(self, facts: ResponseFacts, generation: Generation) -> None:
        self._writer = MessagesWriter(facts)
        self._generation = generation
        self._last = Piece()
        self._is_open = False
        self._num_blocks = 0
        self._block: str | int | None = None  # the open one: "thinking", "text", or a call's index

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""
        data = b"" if self._is_open else self._opening()
        for _, piece in batch:
            self._last = piece
            parsed = parsed_of(piece)
            if parsed.reasoning:
                data += self._add("thinking", {"type": "thinking_delta", "thinking": parsed.reasoning})
            if parsed.content:
                data += self._add("text", {"type": "text_delta", "text": parsed.content})
            for call in parsed.calls:
                data += self._add(call.index, {"type": "input_json_delta", "partial_json": call.arguments}, call)
        return data

    def _opening(self) -> bytes:
        self._is_open = True
        usage = self._generation.usage
        so_far = RequestUsage(usage.num_prompt_tokens, 0, usage.num_cached_tokens)
        return typed_event({"type": "message_start", "message": self._writer.head(so_far)})

    def _add(self, block: str | int, delta: dict[str, Any], call: ToolCallDelta | None = None) -> bytes:
        """delta in its block, which is opened if it isn't the open one."""
        data = b"" if self._block == block else self._end_block() + self._begin_block(block, call)
        return data + self._in_block("content_block_delta", delta=delta)

    def _begin_block(self, block: str | int, call: ToolCallDelta | None) -> bytes:
        self._block = block
        self._num_blocks += 1
        if block == "thinking":
            content: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
        elif block == "text":
            content = _text_block("")
        else:
            assert call is not None
            content = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}, "caller": _CALLER}
        ping = typed_event({"type": "ping"}) if self._num_blocks == 1 else b""
        return self._in_block("content_block_start", content_block=content) + ping

    def _end_block(self) -> bytes:
        if self._block is None:
            return b""
        signature = b""
        if self._block == "thinking":
            signature = self._in_block("content_block_delta", delta={"type": "signature_delta", "signature": ""})
        return signature + self._in_block("content_block_stop")

    def _in_block(self, kind: str, **fields: Any) -> bytes:
        return typed_event({"type": kind, "index": self._num_blocks - 1, **fields})

    async def ending(self, usage: RequestUsage) -> bytes:
        """The events after the last piece. A message without content has an empty text."""
        data = b"" if self._num_blocks else self._begin_block("text", None)
        return (
            data
            + self._end_block()
            + typed_event({"type": "message_delta", "delta": _ending(self._last), "usage": _usage(usage)})
            + typed_event({"type": "message_stop"})
        )

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""
        status, body = describe(error)
        return typed_event(anthropic_error_object(status, body["error"]["message"]))


def _blocks(parsed: AnswerDelta) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if parsed.reasoning:
        blocks.append({"type": "thinking", "thinking": parsed.reasoning, "signature": ""})
    if parsed.content:
        blocks.append(_text_block(parsed.content))
    blocks += [block for call in whole_calls(parsed.calls) if (block := _tool_use(call)) is not None]
    return blocks or [_text_block("")]


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _tool_use(call: WholeCall) -> dict[str, Any] | None:
    """None for a call whose arguments broke off."""
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return None
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments, "caller": _CALLER}


def _ending(piece: Piece) -> dict[str, Any]:
    matched = piece.stop_reason if isinstance(piece.stop_reason, str) else None
    return {"stop_reason": anthropic_stop_reason(piece), "stop_sequence": matched}


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
