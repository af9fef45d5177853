"""The Responses API: a chat that may go on from a stored response and is stored itself."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.api.responses.body import ResponsesBody, parse_responses
from plugserve.server.api.responses.format import ResponsesStream, ResponsesWriter, Save
from plugserve.server.api.responses.input_items import input_messages, output_message
from plugserve.server.api.responses.response_store import ResponseStore, stored_id
from plugserve.server.pipeline.generation_api import CheckedBody


class ResponsesApi:
    """Ids of responses are random, whatever the client calls its request; a response belongs to the tenant that asked
    for it."""

    operation = "chat"
    id_prefix = "resp_"

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        asked, ignored = parse_responses(body)
        earlier = await self._earlier(asked.previous_response_id, owner)
        request = replace(asked.request(earlier), request_id=uuid.uuid4().hex)
        save = self._saving(asked, earlier, owner)
        return CheckedBody(
            request,
            ignored,
            lambda facts: ResponsesWriter(facts, asked, save),
            lambda facts, generation: ResponsesStream(facts, asked, save),
        )

    async def _earlier(self, id: str | None, owner: str) -> list[dict[str, Any]]:
        """The conversation up to the stored response called id."""
        if id is None:
            return []
        record = await self._store.find(stored_id(owner, id))
        if record is None:
            raise RequestError(
                f"previous_response_id: no response {shown(id)} is stored; it was deleted, not stored, or evicted.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        messages: list[dict[str, Any]] = orjson.loads(record)["messages"]
        return messages

    def _saving(self, asked: ResponsesBody, earlier: list[dict[str, Any]], owner: str) -> Save:
        """Stores a finished response with the conversation that a later request goes on from."""

        async def save(response: dict[str, Any]) -> None:
            if asked.is_stored:
                messages = [*earlier, *input_messages(asked.input), output_message(response["output"])]
                record = orjson.dumps({"response": response, "messages": messages})
                await self._store.keep(stored_id(owner, response["id"]), record)

        return save
