"""POST /v1/rerank, /rerank and /v2/rerank (Cohere's); POST /v1/score and /score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sanic import Sanic

from plugserve.server.api.rerank.body import parse_rerank, parse_score
from plugserve.server.api.rerank.format import RerankWriter, ScoreWriter
from plugserve.server.pipeline.exchange import generating
from plugserve.server.pipeline.generation_api import CheckedBody


class RerankApi:
    """The relevance of documents to a query. is_cohere: in the form of Cohere's second version."""

    operation = "rerank"
    id_prefix = "rerank-"

    def __init__(self, *, is_cohere: bool = False) -> None:
        self._is_cohere = is_cohere

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        asked, ignored = parse_rerank(body)
        request = asked.request(cuts=self._is_cohere)
        return CheckedBody(request, ignored, lambda facts: RerankWriter(facts, asked, is_cohere=self._is_cohere))


class ScoreApi:
    """The scores of pairs of texts."""

    operation = "score"
    id_prefix = "score-"

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        asked, ignored = parse_score(body)
        return CheckedBody(asked.request(), ignored, ScoreWriter)


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(generating(RerankApi()), "/v1/rerank", methods=["POST"], name="rerank_v1")
    app.add_route(generating(RerankApi()), "/rerank", methods=["POST"], name="rerank")
    app.add_route(generating(RerankApi(is_cohere=True)), "/v2/rerank", methods=["POST"], name="rerank_v2")
    app.add_route(generating(ScoreApi()), "/v1/score", methods=["POST"], name="score_v1")
    app.add_route(generating(ScoreApi()), "/score", methods=["POST"], name="score")
