"""Adds a route, and logs when engines start and stop. Start it with `plugserve --plugin ./engine_events.py`."""

import logging
from collections.abc import Mapping

from sanic import HTTPResponse, Request, Sanic, json

from plugserve import EngineHandle, hookimpl

log = logging.getLogger("plugserve.engine_events")


@hookimpl
def plugserve_engine_started(engine: EngineHandle) -> None:
    log.info("%s is up: %d blocks on %s", engine.model, engine.info.num_blocks, engine.info.device)


@hookimpl
def plugserve_engine_stopping(engine: EngineHandle) -> None:
    log.info("%s made %d tokens", engine.model, engine.stats().num_generated_tokens)


@hookimpl
def plugserve_register_routes(app: Sanic, engines: Mapping[str, EngineHandle]) -> None:
    async def busy(request: Request) -> HTTPResponse:
        return json({model: engine.stats().num_requests_running for model, engine in engines.items()})

    app.add_route(busy, "/busy", methods=["GET"])
