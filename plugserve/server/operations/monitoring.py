"""GET /metrics and /v1/plugins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.wire.heartbeats import Vitals
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.operations.metrics import CONTENT_TYPE, EngineSnapshot
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(metrics, "/metrics", methods=["GET"])
    app.add_route(plugins, "/v1/plugins", methods=["GET"])


async def metrics(request: Request) -> HTTPResponse:
    """All workers' request metrics and a fresh snapshot of each engine."""
    state = state_of(request)
    engines = state.liveness.engines()
    snapshots = await asyncio.gather(
        *(_snapshot(model, engines.get(model.name)) for model in state.models if _has_figures(model))
    )
    return HTTPResponse(state.metrics.render(snapshots, state.liveness.workers()), content_type=CONTENT_TYPE)


async def _snapshot(model: ServedModel, vitals: Vitals | None) -> EngineSnapshot:
    stats = await model.client.stats()
    is_up = model.client.state == "up"
    return EngineSnapshot(model.name, is_up, model.client.num_restarts, stats, vitals, model.counts)


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
