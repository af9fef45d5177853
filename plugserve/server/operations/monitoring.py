"""GET /metrics and /v1/plugins."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Final

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.wire.heartbeats import Vitals
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.operations.engine_metrics import EngineSnapshot
from plugserve.server.operations.liveness import Liveness
from plugserve.server.operations.metrics import content_type
from plugserve.server.worker.engine_client import EngineClient
from plugserve.server.worker.replicated_client import ReplicatedClient
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import state_of

_OPENMETRICS: Final = "application/openmetrics-text"


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(metrics, "/metrics", methods=["GET"])
    app.add_route(plugins, "/v1/plugins", methods=["GET"])


async def metrics(request: Request) -> HTTPResponse:
    """All workers' request metrics and a fresh snapshot of each engine; as OpenMetrics for clients that accept it."""
    state = state_of(request)
    models = [model for model in state.models if _has_figures(model)]
    snapshots = await asyncio.gather(*(one for model in models for one in _snapshots(model, state.liveness)))
    for model in models:
        state.metrics_of(model.metrics_name)  # shown as 0 before its first request
    is_open = _OPENMETRICS in request.headers.get("accept", "")
    workers = state.liveness.workers()
    text = await asyncio.to_thread(state.metrics.render, snapshots, workers, is_open=is_open)
    return HTTPResponse(text, content_type=content_type(is_open))


def _snapshots(model: ServedModel, liveness: Liveness) -> Iterator[Coroutine[Any, Any, EngineSnapshot]]:
    """One an engine."""
    client = model.client
    if not isinstance(client, ReplicatedClient):
        yield _snapshot(model, client, liveness.engines().get(model.name))
        return
    for number, (one, vitals) in enumerate(zip(client.clients, liveness.each_engine(model.name), strict=True)):
        yield _snapshot(model, one, vitals, number)


async def _snapshot(
    model: ServedModel, client: EngineClient, vitals: Vitals | None, number: int | None = None
) -> EngineSnapshot:
    stats, restarts = await client.stats(), model.client.num_restarts
    is_up = client.state == "up"
    return EngineSnapshot(
        model.name, is_up, restarts, stats, vitals, model.counts, model.client.info, client.state, number
    )


def _has_figures(model: ServedModel) -> bool:
    """A model of the table that was never asked for has no figures."""
    return model.is_kept or model.counts.num_loads > 0 or model.state != "unloaded"


async def plugins(request: Request) -> HTTPResponse:
    """Installed and active plugins, their time in this worker's hooks, and in the engines' strategies."""
    state = state_of(request)
    hook_seconds: dict[str, dict[str, float]] = {}
    for (plugin, hook), seconds in state.hooks.seconds.items():
        hook_seconds.setdefault(plugin, {})[hook] = seconds
    reports = [report.as_dict() for report in state.hooks.report()]
    for report in reports:
        report["hook_seconds"] = hook_seconds.get(report["name"], {})
    engines = {model.name: _by_plugin((await model.client.stats()).plugin_seconds) for model in state.models}
    body = {"object": "list", "data": reports, "engine_seconds": engines}
    return HTTPResponse(orjson.dumps(body), content_type=JSON_TYPE)


def _by_plugin(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Seconds by plugin and call, from those by "plugin call"."""
    nested: dict[str, dict[str, float]] = {}
    for key, value in seconds.items():
        plugin, _, call = key.rpartition(" ")
        nested.setdefault(plugin, {})[call] = value
    return nested
