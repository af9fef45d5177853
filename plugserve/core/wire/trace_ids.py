"""The trace of the request that the running code serves, for log lines and for calls of plugins.

Set only while tracing is on. A task, and a thread of asyncio.to_thread, has the trace of the code that started it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class TraceIds:
    """32 and 16 lower-case hexadecimal digits, as W3C Trace Context writes them."""

    trace_id: str
    span_id: str
    is_sampled: bool


TRACE_IDS: Final[ContextVar[TraceIds | None]] = ContextVar("plugserve_trace_ids", default=None)
