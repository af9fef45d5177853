"""Adds plugins' calls to the trace of the request that they are made for."""

from __future__ import annotations

import time

from plugserve.core.plugin_system.plugin_guard import CallListener
from plugserve.server.operations.tracing.request_trace import RECORDED


class TracedCalls:
    """CallListener that passes everything on to listener."""

    def __init__(self, listener: CallListener) -> None:
        self._listener = listener
        self.failed = listener.failed
        self.set_aside = listener.set_aside

    def spent(self, plugin: str, hook: str, seconds: float) -> None:
        self._listener.spent(plugin, hook, seconds)
        trace = RECORDED.get()
        if trace is not None:
            ended_s = time.perf_counter()
            attributes = {"plugserve.plugin": plugin, "plugserve.hook": hook}
            trace.step(f"{plugin} {hook}", ended_s - seconds, ended_s, attributes)
