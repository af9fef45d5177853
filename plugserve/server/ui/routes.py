"""GET /: the page for browsers, paths for programs; GET /ui/NAME: the page's files. --no-ui leaves the page out."""

from __future__ import annotations

from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.exceptions import NotFound
from sanic.response import HTTPResponse

from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.ui.page_files import page_files
from plugserve.server.worker.server_state import ServerState, state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    state: ServerState = app.ctx.state
    app.add_route(root, "/", methods=["GET"], name="root", ctx_is_undocumented=True, ctx_without_key=True)
    if state.serves_page:
        page_files(state.root_path)  # read at the start, not at the first request
        app.add_route(
            file, "/ui/<name:str>", methods=["GET"], name="ui", ctx_is_undocumented=True, ctx_without_key=True
        )


async def root(request: Request) -> HTTPResponse:
    """Browsers get the page, or without it are sent to /docs. Programs get the paths, if they have a key. Without
    --root-path the redirect is relative, so that it works below a path that only the proxy knows."""
    state = state_of(request)
    if "text/html" in (request.headers.get("accept") or ""):
        if state.serves_page:
            response = page_files(state.root_path)["index.html"].response(request)
            response.headers["Vary"] = "Accept, Accept-Encoding"
            return response
        target = f"{state.root_path}/docs" if state.root_path else "docs"
        return HTTPResponse(status=307, headers={"Location": target, "Vary": "Accept"})
    if not state.access.has_valid_key(request):
        return state.access.refusal(request)
    paths = {"docs": "/docs", "openapi": "/openapi.json", "models": "/v1/models", "health": "/health"}
    body = {"server": f"plugserve {state.version}"} | {name: state.root_path + path for name, path in paths.items()}
    return HTTPResponse(orjson.dumps(body), content_type=JSON_TYPE)


async def file(request: Request, name: str) -> HTTPResponse:
    found = page_files(state_of(request).root_path).get(name)
    if found is None:
        raise NotFound(f"The page has no file {name[:80]!r}.")
    return found.response(request)
