"""Answers and chunks of /v1/completions as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

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
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts


class CompletionWriter:
    """A plain answer, and the chunks of a stream. What is the same in every chunk is encoded once."""

    def __init__(self, facts: ResponseFacts) -> None:
        self._facts = facts
        self._num_logprobs = facts.request.num_logprobs
        self._with_token_ids = facts.request.returns_token_ids
        self._head = event_head(facts, "text_completion")

    def opening(self, index: int) -> bytes:
        return b""

    def chunk(self, index: int, piece: Piece, prompt_token_ids: list[int] | None) -> bytes:
        extra = b""
        if self._with_token_ids:
            extra = b',"token_ids":' + orjson.dumps(piece.token_ids[piece.num_echoed :])
        if prompt_token_ids is not None:
            extra += b',"prompt_token_ids":' + orjson.dumps(prompt_token_ids)
        return b'%s[{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s,"stop_reason":%s%s}]' % (
            self._head,
            index,
            orjson.dumps(piece.text),
            orjson.dumps(self._logprobs(piece)),
            orjson.dumps(piece.finish_reason),
            orjson.dumps(piece.stop_reason),
            extra,
        )

    def without_choices(self) -> bytes:
        return self._head + b"[]"

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        body = body_head(self._facts, "text_completion")
        body["choices"] = [self._choice(answer) for answer in answers]
        body["usage"] = usage_object(usage, self._facts.request.shows_cached_tokens)
        return orjson.dumps(body)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": answer.index,
            "text": answer.piece.text,
            "logprobs": self._logprobs(answer.piece),
            "finish_reason": answer.piece.finish_reason,
            "stop_reason": answer.piece.stop_reason,
        }
        if self._facts.request.num_prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(answer, self._facts)
        if self._with_token_ids:
            choice["token_ids"] = answer.piece.token_ids[answer.piece.num_echoed :]
            choice["prompt_token_ids"] = answer.prompt_token_ids
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self._num_logprobs is None:
            return None
        text_of = self._facts.token_name
        return {
            "text_offset": piece.offsets,
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in piece.logprobs],
            "tokens": [text_of(token_id) for token_id in piece.token_ids],
            "top_logprobs": [None if entry is None else self._tops(entry) for entry in piece.logprobs],
        }

    def _tops(self, entry: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens and the chosen one, so up to num_logprobs + 1."""
        text_of = self._facts.token_name
        count = self._num_logprobs or 0
        tops = zip(entry.top_ids[:count], entry.top_logprobs[:count], strict=True)
        found = dict(tops) | {entry.token_id: entry.logprob}
        shown: dict[str, float] = {}
        for token_id, logprob in sorted(found.items(), key=lambda item: -item[1]):
            shown.setdefault(text_of(token_id), finite(logprob))  # of tokens with equal text the likeliest
        return shown


class CompletionStream(EventStream):
    """The events of one completion."""

    def __init__(self, facts: ResponseFacts, generation: Generation) -> None:
        super().__init__(CompletionWriter(facts), facts, generation)
