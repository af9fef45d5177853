"""GET /openapi.json and /docs."""

from __future__ import annotations

import asyncio
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
    content = await asyncio.to_thread(openapi_document, state.version, state.root_path)
    return HTTPResponse(orjson.dumps(content), content_type=JSON_TYPE)


async def page(request: Request) -> HTTPResponse:
    """Without the page at / it holds no script, and its style stands in it."""
    state = state_of(request)
    made = await asyncio.to_thread(_page, state.version, state.root_path, state.serves_page)
    response = made.response(request)
    if not state.serves_page:
        response.headers["Content-Security-Policy"] = _PLAIN_POLICY
    return response


@functools.cache
def _page(version: str, root_path: str, has_script: bool) -> PageFile:
    """Made in a thread: the first call takes tens of milliseconds."""
    return make_file("docs.html", docs_page(version, root_path, has_script=has_script))
