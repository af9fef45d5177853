"""GET /live: snapshots of the server, one a second, as server-sent events; GET /live/requests: its last requests."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import orjson
from sanic import Request, Sanic
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.errors import EngineUnavailableError, RequestError
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.operations.live_feed import LiveFeed, ModelFacts
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import ServerState, state_of

_PERIOD_S: Final = 1.0
_MOST_REQUESTS: Final = 1000
_DEFAULT_REQUESTS: Final = 100
_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(live, "/live", methods=["GET"])
    app.add_route(last_requests, "/live/requests", methods=["GET"])


async def live(request: Request) -> HTTPResponse | None:
    """A stream of snapshots; with ?once=true one snapshot as plain JSON. The stream ends when the server stops."""
    state = state_of(request)
    if request.args.get("once", "").lower() in ("true", "1"):
        return HTTPResponse(await _snapshot(state), content_type=JSON_TYPE)
    if state.is_stopping:
        raise EngineUnavailableError("The server is stopping.")
    data = await _snapshot(state)
    response: BaseHTTPResponse = await request.respond(headers=_HEADERS, content_type="text/event-stream")
    while not state.requests.is_stopping:
        await response.send(b"data: " + data + b"\n\n")
        await asyncio.sleep(_PERIOD_S)
        data = await _snapshot(state)
    await response.eof()  # type: ignore[attr-defined]
    return None


async def last_requests(request: Request) -> HTTPResponse:
    """The last ?limit= requests, the newest first."""
    state = state_of(request)
    limit = _limit(request.args.get("limit"))
    feed, own = LiveFeed(state.live, state.version), state.notes()
    models = await _models(state)
    body = await asyncio.to_thread(lambda: orjson.dumps(feed.requests(models, own, limit)))
    return HTTPResponse(body, content_type=JSON_TYPE)


def _limit(given: str | None) -> int:
    if given is None:
        return _DEFAULT_REQUESTS
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= _MOST_REQUESTS:
        raise RequestError(f"limit must be from 1 to {_MOST_REQUESTS}, got {given[:20]!r}", param="limit")
    return int(given)


async def _snapshot(state: ServerState) -> bytes:
    """The snapshot as JSON. All who watch through this worker share it."""
    return await state.live_snapshot.get(partial(_make_snapshot, state))


async def _make_snapshot(state: ServerState) -> bytes:
    """In a thread."""
    feed, own = LiveFeed(state.live, state.version), state.notes()
    models = await _models(state)
    return await asyncio.to_thread(lambda: orjson.dumps(feed.snapshot(models, own)))


async def _models(state: ServerState) -> list[ModelFacts]:
    return list(await asyncio.gather(*(_facts(state, model) for model in state.models)))


async def _facts(state: ServerState, model: ServedModel) -> ModelFacts:
    """An engine is asked for its counts only where it records nothing."""
    vitals = state.liveness.engines().get(model.name)
    engines = state.live.engines_of(model.index)
    is_recorded = any(state.live.flight(index) is not None for index in engines)
    return ModelFacts(
        name=model.name,
        engines=engines,
        state=model.state,
        info=model.client.info,
        adapters=tuple(one.name for one in state.models.adapters.values() if one.owner is model),
        pid=vitals.pid if vitals is not None else 0,
        stats=None if is_recorded or model.state != "up" else await model.client.stats(),
    )
