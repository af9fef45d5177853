"""Answers and chunks as OpenAI's JSON: one class for chat, one for completions. Knows nothing of when they are sent.

What is the same in every chunk of a request is encoded once, in __init__.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from plugserve import __version__
from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.server.pipeline.choice import Piece
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.tool_calls import AnswerDelta, call_object, whole_calls

_FINGERPRINT: Final = f"plugserve-{__version__}"
_LEAST_LOGPROB: Final = -9999.0  # JSON has no -Infinity


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished choice, whole."""

    index: int
    piece: Piece
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """What the format needs to know of a request. num_logprobs: None where the client wants none; sampling_defaults:
    the model's own."""

    id: str
    created: int
    model: str
    vocabulary: Vocabulary
    num_logprobs: int | None
    num_prompt_logprobs: int | None
    with_token_ids: bool
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)


class AnswerFormat(Protocol):
    """How one endpoint writes a whole answer down."""

    facts: ResponseFacts

    def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""


class Format(AnswerFormat, Protocol):
    """How chat and completions write answers and chunks down."""

    def opening(self, index: int) -> bytes:
        """The start of a choice's first chunk, up to its usage; b"" where the endpoint has no such chunk."""

    def chunk(self, index: int, piece: Piece, prompt_token_ids: list[int] | None) -> bytes:
        """An event up to its usage. prompt_token_ids: in a choice's first chunk, when the client wants token ids."""

    def without_choices(self) -> bytes:
        """The usage event up to its usage."""


class ChatFormat:
    """/v1/chat/completions."""

    def __init__(self, facts: ResponseFacts) -> None:
        self.facts = facts
        self._head = _event_head(facts, "chat.completion.chunk")

    def opening(self, index: int) -> bytes:
        return b'%s[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' % (
            self._head,
            index,
        )

    def chunk(self, index: int, piece: Piece, prompt_token_ids: list[int] | None) -> bytes:
        delta = b'{"content":%s}' % orjson.dumps(piece.text) if piece.parsed is None else _delta(piece.parsed)
        extra = b',"token_ids":' + orjson.dumps(piece.token_ids) if self.facts.with_token_ids else b""
        event = b'%s[{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":%s,"stop_reason":%s%s}]' % (
            self._head,
            index,
            delta,
            orjson.dumps(self._logprobs(piece)),
            orjson.dumps(_finish_reason(piece)),
            orjson.dumps(piece.stop_reason),
            extra,
        )
        if prompt_token_ids is not None:
            event += b',"prompt_token_ids":' + orjson.dumps(prompt_token_ids)
        return event

    def without_choices(self) -> bytes:
        return self._head + b"[]"

    def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        body = _body_head(self.facts, "chat.completion")
        body["choices"] = [self._choice(answer) for answer in answers]
        body["usage"] = usage_object(usage)
        if self.facts.num_prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(answers[0], self.facts)
        if self.facts.with_token_ids:
            body["prompt_token_ids"] = answers[0].prompt_token_ids
        return orjson.dumps(body)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        choice = {
            "index": answer.index,
            "message": _message(answer.piece),
            "logprobs": self._logprobs(answer.piece),
            "finish_reason": _finish_reason(answer.piece),
            "stop_reason": answer.piece.stop_reason,
        }
        if self.facts.with_token_ids:
            choice["token_ids"] = answer.piece.token_ids
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.facts.num_logprobs is None:
            return None
        return {"content": [self._entry(entry) for entry in piece.logprobs if entry is not None], "refusal": None}

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        count = self.facts.num_logprobs or 0
        tops = zip(entry.top_ids[:count], entry.top_logprobs[:count], strict=True)
        return {
            **self._token(entry.token_id, entry.logprob),
            "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in tops],
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        vocabulary = self.facts.vocabulary
        return {
            "token": vocabulary.token_text(token_id),
            "logprob": finite(logprob),
            "bytes": list(vocabulary.token_bytes(token_id)),
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


def _finish_reason(piece: Piece) -> str | None:
    return "tool_calls" if piece.finish_reason == "stop" and piece.has_calls else piece.finish_reason


class CompletionFormat:
    """/v1/completions."""

    def __init__(self, facts: ResponseFacts) -> None:
        self.facts = facts
        self._head = _event_head(facts, "text_completion")

    def opening(self, index: int) -> bytes:
        return b""

    def chunk(self, index: int, piece: Piece, prompt_token_ids: list[int] | None) -> bytes:
        extra = b""
        if self.facts.with_token_ids:
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

    def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        body = _body_head(self.facts, "text_completion")
        body["choices"] = [self._choice(answer) for answer in answers]
        body["usage"] = usage_object(usage)
        return orjson.dumps(body)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": answer.index,
            "text": answer.piece.text,
            "logprobs": self._logprobs(answer.piece),
            "finish_reason": answer.piece.finish_reason,
            "stop_reason": answer.piece.stop_reason,
        }
        if self.facts.num_prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(answer, self.facts)
        if self.facts.with_token_ids:
            choice["token_ids"] = answer.piece.token_ids[answer.piece.num_echoed :]
            choice["prompt_token_ids"] = answer.prompt_token_ids
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.facts.num_logprobs is None:
            return None
        text_of = self.facts.vocabulary.token_text
        return {
            "text_offset": piece.offsets,
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in piece.logprobs],
            "tokens": [text_of(token_id) for token_id in piece.token_ids],
            "top_logprobs": [None if entry is None else self._tops(entry) for entry in piece.logprobs],
        }

    def _tops(self, entry: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens and the chosen one, so up to num_logprobs + 1."""
        text_of = self.facts.vocabulary.token_text
        count = self.facts.num_logprobs or 0
        tops = zip(entry.top_ids[:count], entry.top_logprobs[:count], strict=True)
        found = dict(tops) | {entry.token_id: entry.logprob}
        shown: dict[str, float] = {}
        for token_id, logprob in sorted(found.items(), key=lambda item: -item[1]):
            shown.setdefault(text_of(token_id), finite(logprob))  # of tokens with equal text the likeliest
        return shown


def prompt_logprobs(answer: Answer, facts: ResponseFacts) -> list[dict[str, dict[str, Any]] | None]:
    """One entry a prompt token: None for the first, then the token and the most likely ones by token id."""
    count = facts.num_prompt_logprobs or 0
    entries: list[dict[str, dict[str, Any]] | None] = []
    for entry in answer.prompt_logprobs or []:
        if entry is None:
            entries.append(None)
            continue
        tops = list(zip(entry.top_ids, entry.top_logprobs, strict=True))[:count]
        found = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(tops, 1)}
        found[entry.token_id] = (entry.logprob, entry.rank)
        entries.append(
            {
                str(token_id): {
                    "logprob": finite(logprob),
                    "rank": rank,
                    "decoded_token": facts.vocabulary.token_text(token_id),
                }
                for token_id, (logprob, rank) in found.items()
            }
        )
    return entries


def usage_object(usage: RequestUsage) -> dict[str, Any]:
    """OpenAI's usage; cached tokens only where there are any, thinking only where it is told apart."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_generated_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
    }
    if usage.num_cached_tokens:
        body["prompt_tokens_details"] = {"cached_tokens": usage.num_cached_tokens}
    if usage.num_reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.num_reasoning_tokens}
    return body


def finite(logprob: float) -> float:
    """A logprob that JSON can carry."""
    return logprob if logprob > _LEAST_LOGPROB else _LEAST_LOGPROB  # also turns NaN into the least


def _body_head(facts: ResponseFacts, kind: str) -> dict[str, Any]:
    return {
        "id": facts.id,
        "object": kind,
        "created": facts.created,
        "model": facts.model,
        "system_fingerprint": _FINGERPRINT,
    }


def _event_head(facts: ResponseFacts, kind: str) -> bytes:
    """An event up to the value of choices."""
    return b"data: " + orjson.dumps(_body_head(facts, kind))[:-1] + b',"choices":'
