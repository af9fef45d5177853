"""POST /v1/responses: a chat in other words, which may go on from a stored response and be stored itself."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.api.chat import body as chat
from plugserve.server.api.formats import AnswerFormat, ResponseFacts
from plugserve.server.api.generation_body import GenerationBody, parse_body, shown
from plugserve.server.api.responses.body import ResponsesBody, parse_responses
from plugserve.server.api.responses.format import ResponsesFormat, ResponsesStream
from plugserve.server.api.responses.input_items import output_message
from plugserve.server.api.responses.response_store import ResponseStore
from plugserve.server.pipeline.endpoints import Parsed, parsed_chat
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.prompts import Prompt, chat_prompts
from plugserve.server.pipeline.sampling_params import Limits
from plugserve.server.pipeline.streaming import Events
from plugserve.server.worker.served_models import TextSide


class ResponsesEndpoint:
    """One request's. Its ids are random, whatever the client calls its request: who knows an id may read it."""

    operation = "chat"
    id_prefix = "resp_"

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._asked = ResponsesBody()
        self._messages: list[dict[str, Any]] = []
        self._finished: dict[str, Any] | None = None

    def parse(self, body: Mapping[str, Any]) -> Parsed:
        self._asked, asked, ignored = parse_responses(body)
        chat_body, _ = parse_body(chat.ChatBody, {**asked, "request_id": uuid.uuid4().hex}, known=chat.KNOWN)
        parsed = parsed_chat(chat_body, ignored, tokens_field="max_output_tokens", prompt_field="input")
        return parsed.with_format_field("text.format.schema")

    async def prompts(self, body: GenerationBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
        assert isinstance(body, chat.ChatBody)
        self._messages = await self._earlier() + body.messages
        instructions = self._asked.instructions
        first = [{"role": "system", "content": instructions}] if instructions else []
        return await chat_prompts(body.model_copy(update={"messages": first + self._messages}), text, limits, pool)

    async def _earlier(self) -> list[dict[str, Any]]:
        """The conversation up to the stored response that this one goes on from."""
        id = self._asked.previous_response_id
        if id is None:
            return []
        record = await self._store.find(id)
        if record is None:
            raise RequestError(
                f"previous_response_id: no response {shown(id)} is stored; it was deleted, not stored, or forgotten.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        messages: list[dict[str, Any]] = orjson.loads(record)["messages"]
        return messages

    def format(self, facts: ResponseFacts) -> AnswerFormat:
        return ResponsesFormat(facts, self._asked, self._note)

    def event_stream(self, format: AnswerFormat, parsed: Parsed, generation: Generation) -> Events:
        assert isinstance(format, ResponsesFormat)
        return ResponsesStream(format, self._save)

    def _note(self, response: dict[str, Any]) -> None:
        self._finished = response

    async def keep_answer(self) -> None:
        """Store a plain answer; call it before the client gets it."""
        if self._finished is not None:
            await self._save(self._finished)

    async def _save(self, response: dict[str, Any]) -> None:
        if self._asked.is_stored:
            messages = [*self._messages, output_message(response["output"])]
            await self._store.keep(response["id"], orjson.dumps({"response": response, "messages": messages}))
