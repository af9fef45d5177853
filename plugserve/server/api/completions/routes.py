"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sanic import Sanic

from plugserve.server.api.completions.body import CompletionBody
from plugserve.server.api.completions.format import CompletionStream, CompletionWriter
from plugserve.server.api.generation_body import parse_body
from plugserve.server.pipeline.exchange import generating
from plugserve.server.pipeline.generation_api import CheckedBody


class CompletionApi:
    """OpenAI's completions of texts."""

    operation = "text_completion"
    id_prefix = "cmpl-"

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        parsed, ignored = parse_body(CompletionBody, body)
        return CheckedBody(parsed.request(), ignored, CompletionWriter, CompletionStream)


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(generating(CompletionApi()), "/v1/completions", methods=["POST"], name="completions")
