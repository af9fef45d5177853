"""The spans of a model that is loaded, comes back or is unloaded: a trace of their own."""

from __future__ import annotations

import time

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.server.operations.tracing.tracer import Work
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState

_STARTING = "loading"  # the stage in which the engine's process starts


def load_work(slot: EngineSlot, info: EngineInfo | None = None, *, error: Exception | None = None) -> Work:
    """Of the load in progress, or of an engine that is back after it had died. info: of the engine that is up."""
    now_s = time.monotonic()
    engine = _engine_work(info, now_s) if info is not None else None
    attributes = {"plugserve.model": slot.name, "plugserve.model.size_bytes": slot.size_bytes or None}
    if slot.state is not ModelState.LOADING and error is None:
        started_s = engine.started_s if engine is not None else now_s
        children = engine.children if engine is not None else []
        return Work(f"restart engine {slot.name}", started_s, now_s, attributes, children)
    ends = [at_s for _, at_s in slot.load_stages[1:]] + [now_s]
    children = [Work(name, at_s, end_s) for (name, at_s), end_s in zip(slot.load_stages, ends, strict=True)]
    if engine is not None and children and children[-1].name == _STARTING:
        children[-1] = Work("start engine", children[-1].started_s, now_s, {}, engine.children)
    failure = type(error).__name__ if error is not None else ""
    started_s = children[0].started_s if children else now_s
    return Work(f"load {slot.name}", started_s, now_s, attributes, children, failure)


def unload_work(slot: EngineSlot, started_s: float, reason: str, size_bytes: int) -> Work:
    """reason is "idle", "memory" or "request"."""
    attributes = {
        "plugserve.model": slot.name,
        "plugserve.model.size_bytes": size_bytes or None,
        "plugserve.unload.reason": reason,
    }
    return Work(f"unload {slot.name}", started_s, time.monotonic(), attributes)


def _engine_work(info: EngineInfo, now_s: float) -> Work:
    children = [Work(stage.name, stage.started_s, stage.ended_s) for stage in info.load_stages]
    return Work("start engine", children[0].started_s if children else now_s, now_s, {}, children)
