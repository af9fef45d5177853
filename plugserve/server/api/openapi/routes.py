"""GET /openapi.json and /docs."""

from __future__ import annotations

from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.api.openapi.document import docs_page, openapi_document
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(document, "/openapi.json", methods=["GET"], name="openapi")
    app.add_route(page, "/docs", methods=["GET"], name="docs", ctx_without_key=True)


async def document(request: Request) -> HTTPResponse:
    state = state_of(request)
    return HTTPResponse(orjson.dumps(openapi_document(state.version, state.root_path)), content_type=JSON_TYPE)


async def page(request: Request) -> HTTPResponse:
    return HTTPResponse(docs_page(state_of(request).version), content_type="text/html; charset=utf-8")
