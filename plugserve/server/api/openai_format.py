"""The common parts of OpenAI's chat and completions answers: heads, usage, prompt logprobs and the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import orjson

from plugserve import __version__
from plugserve.core.contracts.requests import RequestUsage
from plugserve.server.api.error_responses import error_event
from plugserve.server.pipeline.choice import Choice, Piece
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts

DONE: Final = b"data: [DONE]\n\n"
_FINGERPRINT: Final = f"plugserve-{__version__}"
_LEAST_LOGPROB: Final = -9999.0  # JSON has no -Infinity


class ChunkWriter(Protocol):
    """The differences between chunks of chat and completions."""

    def opening(self, index: int) -> bytes:
        """The start of a choice's first chunk, up to its usage; b"" where the API has no such chunk."""

    def chunk(self, index: int, piece: Piece, prompt_token_ids: list[int] | None) -> bytes:
        """An event up to its usage. prompt_token_ids: in a choice's first chunk, with return_token_ids."""

    def without_choices(self) -> bytes:
        """The usage event up to its usage."""


class EventStream:
    """The events of one chat or completion.

    A choice's first output goes out at once; after that one piece is held back until the next one comes, so that the
    last chunk with output is the one that carries the finish_reason even when the last token (an EOS) has no text. With
    include_usage, ordinary chunks have usage null and a last chunk has the total; with continuous usage, each chunk has
    the usage so far.
    """

    def __init__(self, writer: ChunkWriter, facts: ResponseFacts, generation: Generation) -> None:
        request = facts.request
        self._writer = writer
        self._generation = generation
        self._prompt_token_ids: dict[int, list[int]] = {}
        if request.returns_token_ids:
            self._prompt_token_ids = {job.choice.index: job.prompt_token_ids for job in generation.jobs}
        self._in_stream = request.usage_in_stream
        self._in_every_chunk = request.usage_in_stream and request.usage_in_every_chunk
        self._shows_cached = request.shows_cached_tokens
        self._tail = b',"usage":null}\n\n' if self._in_stream else b"}\n\n"
        self._num_sent = 0
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
        return self._writer.without_choices() + b',"usage":' + orjson.dumps(self._usage_object(usage)) + b"}\n\n" + DONE

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
        opening = self._writer.opening(index)
        return [self._with_usage(opening)] if opening else []

    def _chunk(self, index: int, piece: Piece) -> bytes:
        self._shown.add(index)
        self._num_sent += len(piece.token_ids) - piece.num_echoed
        return self._with_usage(self._writer.chunk(index, piece, self._prompt_token_ids.pop(index, None)))

    def _with_usage(self, event: bytes) -> bytes:
        if not self._in_every_chunk:
            return event + self._tail
        usage = self._usage_object(self._usage_so_far())
        return event + b',"usage":' + orjson.dumps(usage) + b"}\n\n"

    def _usage_object(self, usage: RequestUsage) -> dict[str, Any]:
        return usage_object(usage, self._shows_cached)

    def _usage_so_far(self) -> RequestUsage:
        generation = self._generation
        return RequestUsage(generation.num_prompt_tokens, self._num_sent, generation.usage.num_cached_tokens)


def prompt_logprobs(answer: Answer, facts: ResponseFacts) -> list[dict[str, dict[str, Any]] | None]:
    """One entry a prompt token: None for the first, then the token and the most likely ones by token id."""
    count = facts.request.num_prompt_logprobs or 0
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


def usage_object(usage: RequestUsage, shows_cached_tokens: bool | None = None) -> dict[str, Any]:
    """OpenAI's usage; reasoning tokens only if they are counted. shows_cached_tokens: see AnswerSettings."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_generated_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
    }
    if usage.num_cached_tokens if shows_cached_tokens is None else shows_cached_tokens:
        body["prompt_tokens_details"] = {"cached_tokens": usage.num_cached_tokens}
    if usage.num_reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.num_reasoning_tokens}
    return body


def finite(logprob: float) -> float:
    """A logprob that JSON can carry."""
    return logprob if logprob > _LEAST_LOGPROB else _LEAST_LOGPROB  # also turns NaN into the least


def body_head(facts: ResponseFacts, kind: str) -> dict[str, Any]:
    return {
        "id": facts.id,
        "object": kind,
        "created": facts.created,
        "model": facts.model,
        "system_fingerprint": _FINGERPRINT,
    }


def event_head(facts: ResponseFacts, kind: str) -> bytes:
    """An event up to the value of choices."""
    return b"data: " + orjson.dumps(body_head(facts, kind))[:-1] + b',"choices":'
