"""GET /openapi.json and /docs."""

from __future__ import annotations

import functools
from typing import Any, Final

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.api.openapi.docs_page import docs_page
from plugserve.server.api.openapi.document import openapi_document
from plugserve.server.ui.page_files import PageFile, make_file
from plugserve.server.worker.server_state import state_of

_PLAIN_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(document, "/openapi.json", methods=["GET"], name="openapi")
    app.add_route(page, "/docs", methods=["GET"], name="docs", ctx_without_key=True)


async def document(request: Request) -> HTTPResponse:
    state = state_of(request)
    return HTTPResponse(orjson.dumps(openapi_document(state.version, state.root_path)), content_type=JSON_TYPE)


async def page(request: Request) -> HTTPResponse:
    """Without the page at / it holds no script, and its style stands in it."""
    state = state_of(request)
    content = docs_page(state.version, state.root_path, has_script=state.serves_page)
    response = _as_file(content).response(request)
    if not state.serves_page:
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        )
    return response


@functools.cache
def _as_file(content: bytes) -> PageFile:
    return make_file("docs.html", content)
