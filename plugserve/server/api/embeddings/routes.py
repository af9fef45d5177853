"""POST /v1/embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sanic import Sanic

from plugserve.server.api.embeddings.body import parse_embeddings
from plugserve.server.api.embeddings.format import EmbeddingsWriter
from plugserve.server.pipeline.exchange import generating
from plugserve.server.pipeline.generation_api import CheckedBody


class EmbeddingsApi:
    """The pooled hidden states of each input."""

    operation = "embeddings"
    id_prefix = "embd-"

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        asked, ignored = parse_embeddings(body)
        return CheckedBody(asked.request(), ignored, lambda facts: EmbeddingsWriter(facts, asked))


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(generating(EmbeddingsApi()), "/v1/embeddings", methods=["POST"], name="embeddings")
