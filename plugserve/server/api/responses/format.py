"""Answers as OpenAI's responses, whole or as typed events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from plugserve.core.contracts.requests import RequestUsage
from plugserve.server.api.error_responses import describe
from plugserve.server.api.responses.body import ResponsesBody
from plugserve.server.api.responses.output_items import ResponseOutput
from plugserve.server.api.typed_events import parsed_of, typed_event
from plugserve.server.pipeline.choice import Choice, Piece
from plugserve.server.pipeline.finish_reason import responses_status
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts

Save = Callable[[dict[str, Any]], Awaitable[None]]


class ResponsesWriter:
    """A plain response. save keeps the finished response before its client gets it."""

    def __init__(self, facts: ResponseFacts, asked: ResponsesBody, save: Save) -> None:
        self.facts = facts
        self._asked = asked
        self._save = save

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""
        piece = answers[0].piece
        output = ResponseOutput(self.facts.id, lambda kind, fields: None)
        output.add(parsed_of(piece))
        response = self.finished(output, piece.finish_reason, usage)
        await self._save(response)
        return orjson.dumps(response)

    def head(self, status: str) -> dict[str, Any]:
        """A response without output."""
        asked = self._asked
        return {
            "id": self.facts.id,
            "object": "response",
            "created_at": self.facts.created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "frequency_penalty": asked.frequency_penalty or 0.0,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": self.facts.model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "presence_penalty": asked.presence_penalty or 0.0,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None} | (asked.reasoning or {}),
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.is_stored,
            "temperature": self._sampled("temperature", asked.temperature),
            "text": {"format": {"type": "text"}} | {name: value for name, value in (asked.text or {}).items() if value},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [_tool(tool) for tool in asked.tools or []],
            "top_logprobs": 0,
            "top_p": self._sampled("top_p", asked.top_p),
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }

    def _sampled(self, name: str, asked: float | None) -> float:
        """The sampling parameters: the client's value, else the model's, else OpenAI's default."""
        return float(self.facts.sampling_defaults.get(name, 1.0) if asked is None else asked)

    def finished(self, output: ResponseOutput, finish_reason: str | None, usage: RequestUsage) -> dict[str, Any]:
        """The response with its output; one that a limit or the server's end cut short is incomplete."""
        status, reason = responses_status(finish_reason)
        response = self.head(status)
        response["completed_at"] = int(time.time())
        output.end(status)
        response["output"] = output.items
        response["usage"] = _usage(usage)
        if reason is not None:
            response["incomplete_details"] = {"reason": reason}
        return response


class ResponsesStream:
    """The events of one response, numbered. save keeps the finished response before the last event is sent."""

    def __init__(self, facts: ResponseFacts, asked: ResponsesBody, save: Save) -> None:
        self._writer = ResponsesWriter(facts, asked, save)
        self._save = save
        self._numbers = itertools.count()
        self._events: list[bytes] = []
        self._output = ResponseOutput(facts.id, self._note)
        self._finish_reason: str | None = None
        self._is_open = False

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""
        if not self._is_open:
            self._is_open = True
            head = self._writer.head("in_progress")
            self._note("response.created", {"response": head})
            self._note("response.in_progress", {"response": head})
        for _, piece in batch:
            self._finish_reason = piece.finish_reason
            self._output.add(parsed_of(piece))
        return self._news()

    async def ending(self, usage: RequestUsage) -> bytes:
        """The events after the last piece."""
        response = self._writer.finished(self._output, self._finish_reason, usage)
        await self._save(response)
        self._note(f"response.{response['status']}", {"response": response})
        return self._news()

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""
        described = describe(error)[1]["error"]
        response = self._writer.head("failed")
        response["error"] = {"code": described["code"] or "server_error", "message": described["message"]}
        self._note("response.failed", {"response": response})
        return self._news()

    def _note(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._events.append(typed_event({"type": kind, "sequence_number": next(self._numbers), **fields}))

    def _news(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as a response repeats it, every field there."""
    return {"description": None, "parameters": None, "strict": False} | dict(tool)


def _usage(usage: RequestUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "output_tokens": usage.num_generated_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens or 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
    }
