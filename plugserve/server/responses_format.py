"""OpenAI's Responses API: a response as an object, whole or as typed events. Knows nothing of how it comes about."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from plugserve.core.contracts import RequestUsage
from plugserve.server.choice import Choice, Piece
from plugserve.server.error_responses import describe
from plugserve.server.formats import Answer, ResponseFacts
from plugserve.server.schemas.responses import ResponsesBody
from plugserve.server.streaming import typed_event

Save = Callable[[dict[str, Any]], Awaitable[None]]


class ResponsesFormat:
    """/v1/responses. note is told the finished response."""

    def __init__(self, facts: ResponseFacts, asked: ResponsesBody, note: Callable[[dict[str, Any]], None]) -> None:
        self.facts = facts
        self.message_id = facts.id.replace("resp_", "msg_", 1)
        self._asked = asked
        self._note = note

    def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""
        response = self.finished(answers[0].piece.text, answers[0].piece.finish_reason, usage)
        self._note(response)
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
            "parallel_tool_calls": True,
            "presence_penalty": asked.presence_penalty or 0.0,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.is_stored,
            "temperature": self._sampled("temperature", asked.temperature),
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": self._sampled("top_p", asked.top_p),
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }

    def _sampled(self, name: str, asked: float | None) -> float:
        """What was sampled with: the client's value, else the model's, else OpenAI's default."""
        return float(self.facts.sampling_defaults.get(name, 1.0) if asked is None else asked)

    def finished(self, text: str, finish_reason: str | None, usage: RequestUsage) -> dict[str, Any]:
        """The response with its output; one that a limit or the server's end cut short is incomplete."""
        status = "completed" if finish_reason == "stop" else "incomplete"
        response = self.head(status)
        response["completed_at"] = int(time.time())
        response["output"] = [self.item(status, [text_part(text)])]
        response["usage"] = _usage(usage)
        if status == "incomplete":
            reason = "max_output_tokens" if finish_reason == "length" else "aborted"
            response["incomplete_details"] = {"reason": reason}
        return response

    def item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The message that the response says."""
        return {"id": self.message_id, "type": "message", "status": status, "role": "assistant", "content": content}


class ResponsesStream:
    """The events of one response, numbered. save keeps the finished response before its client hears of the end."""

    def __init__(self, format: ResponsesFormat, save: Save) -> None:
        self._format = format
        self._save = save
        self._numbers = itertools.count()
        self._texts: list[str] = []
        self._finish_reason: str | None = None
        self._is_open = False

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""
        data = b"" if self._is_open else self._opening()
        for _, piece in batch:
            self._finish_reason = piece.finish_reason
            if piece.text:
                self._texts.append(piece.text)
                data += self._in_part("response.output_text.delta", delta=piece.text, logprobs=[])
        return data

    async def ending(self, usage: RequestUsage) -> bytes:
        """What comes after the last piece."""
        text = "".join(self._texts)
        response = self._format.finished(text, self._finish_reason, usage)
        await self._save(response)
        item = response["output"][0]
        return (
            self._in_part("response.output_text.done", text=text, logprobs=[])
            + self._in_part("response.content_part.done", part=text_part(text))
            + self._event("response.output_item.done", output_index=0, item=item)
            + self._event(f"response.{response['status']}", response=response)
        )

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""
        told = describe(error)[1]["error"]
        response = self._format.head("failed")
        response["error"] = {"code": told["code"] or "server_error", "message": told["message"]}
        return self._event("response.failed", response=response)

    def _opening(self) -> bytes:
        self._is_open = True
        head = self._format.head("in_progress")
        return (
            self._event("response.created", response=head)
            + self._event("response.in_progress", response=head)
            + self._event("response.output_item.added", output_index=0, item=self._format.item("in_progress", []))
            + self._in_part("response.content_part.added", part=text_part(""))
        )

    def _in_part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._format.message_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return typed_event({"type": kind, "sequence_number": next(self._numbers), **fields})


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: RequestUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "output_tokens": usage.num_generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
    }
