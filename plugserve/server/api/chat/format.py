"""Answers and chunks of /v1/chat/completions as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from plugserve.core.contracts.answers import AnswerDelta
from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.server.api.openai_format import (
    EventStream,
    body_head,
    event_head,
    finite,
    prompt_logprobs,
    usage_object,
)
from plugserve.server.pipeline.choice import Piece
from plugserve.server.pipeline.finish_reason import chat_finish_reason
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts
from plugserve.server.text.tool_calls import call_object, whole_calls


class ChatWriter:
    """A plain answer, and the chunks of a stream. What is the same in every chunk is encoded once."""

    def __init__(self, facts: ResponseFacts) -> None:
        self._facts = facts
        self._num_logprobs = facts.request.num_logprobs
        self._with_token_ids = facts.request.returns_token_ids
        self._head = event_head(facts, "chat.completion.chunk")

    def opening(self, index: int) -> bytes:
        return b'%s[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' % (
            self._head,
            index,
        )

    def chunk(self, index: int, piece: Piece, prompt_token_ids: list[int] | None) -> bytes:
        delta = b'{"content":%s}' % orjson.dumps(piece.text) if piece.parsed is None else _delta(piece.parsed)
        extra = b',"token_ids":' + orjson.dumps(piece.token_ids) if self._with_token_ids else b""
        event = b'%s[{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":%s,"stop_reason":%s%s}]' % (
            self._head,
            index,
            delta,
            orjson.dumps(self._logprobs(piece)),
            orjson.dumps(chat_finish_reason(piece)),
            orjson.dumps(piece.stop_reason),
            extra,
        )
        if prompt_token_ids is not None:
            event += b',"prompt_token_ids":' + orjson.dumps(prompt_token_ids)
        return event

    def without_choices(self) -> bytes:
        return self._head + b"[]"

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        body = body_head(self._facts, "chat.completion")
        body["choices"] = [self._choice(answer) for answer in answers]
        body["usage"] = usage_object(usage, self._facts.request.shows_cached_tokens)
        if self._facts.request.num_prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(answers[0], self._facts)
        if self._with_token_ids:
            body["prompt_token_ids"] = answers[0].prompt_token_ids
        return orjson.dumps(body)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        choice = {
            "index": answer.index,
            "message": _message(answer.piece),
            "logprobs": self._logprobs(answer.piece),
            "finish_reason": chat_finish_reason(answer.piece),
            "stop_reason": answer.piece.stop_reason,
        }
        if self._with_token_ids:
            choice["token_ids"] = answer.piece.token_ids
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self._num_logprobs is None:
            return None
        return {"content": [self._entry(entry) for entry in piece.logprobs if entry is not None], "refusal": None}

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        count = self._num_logprobs or 0
        tops = zip(entry.top_ids[:count], entry.top_logprobs[:count], strict=True)
        return {
            **self._token(entry.token_id, entry.logprob),
            "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in tops],
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._facts.token_name(token_id),
            "logprob": finite(logprob),
            "bytes": list(self._facts.vocabulary.token_bytes(token_id)),
        }


def _delta(parsed: AnswerDelta) -> bytes:
    """A chunk's delta. Thinking goes by both names that clients know."""
    delta: dict[str, Any] = {}
    if parsed.reasoning:
        delta["reasoning"] = delta["reasoning_content"] = parsed.reasoning
    if parsed.content:
        delta["content"] = parsed.content
    if parsed.calls:
        delta["tool_calls"] = [call_object(call) for call in parsed.calls]
    return orjson.dumps(delta)


def _message(piece: Piece) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
    parsed = piece.parsed
    if parsed is None:
        return message
    message["content"] = parsed.content or None
    if parsed.reasoning:
        message["reasoning"] = message["reasoning_content"] = parsed.reasoning
    if parsed.calls:
        message["tool_calls"] = [call_object(call) for call in whole_calls(parsed.calls)]
    return message


class ChatStream(EventStream):
    """The events of one chat."""

    def __init__(self, facts: ResponseFacts, generation: Generation) -> None:
        super().__init__(ChatWriter(facts), facts, generation)
