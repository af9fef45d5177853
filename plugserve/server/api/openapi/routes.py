"""GET /openapi.json, /docs, and / which points to them."""

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
    app.add_route(page, "/docs", methods=["GET"], name="docs")
    app.add_route(root, "/", methods=["GET"], name="root", ctx_is_undocumented=True)


async def document(request: Request) -> HTTPResponse:
    state = state_of(request)
    return HTTPResponse(orjson.dumps(openapi_document(state.version, state.root_path)), content_type=JSON_TYPE)


async def page(request: Request) -> HTTPResponse:
    return HTTPResponse(docs_page(state_of(request).version), content_type="text/html; charset=utf-8")


async def root(request: Request) -> HTTPResponse:
    """Browsers are sent to /docs, programs get the paths. Without --root-path the redirect is relative, so that it
    works below a path that only the proxy knows."""
    state = state_of(request)
    if "text/html" in (request.headers.get("accept") or ""):
        target = f"{state.root_path}/docs" if state.root_path else "docs"
        return HTTPResponse(status=307, headers={"Location": target})
    paths = {"docs": "/docs", "openapi": "/openapi.json", "models": "/v1/models", "health": "/health"}
    body = {"server": f"plugserve {state.version}"} | {name: state.root_path + path for name, path in paths.items()}
    return HTTPResponse(orjson.dumps(body), content_type=JSON_TYPE)
