"""What OpenTelemetry's SDK logs, at most one line a minute: a collector that is away is no news every second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from plugserve.core.errors import one_line
from plugserve.core.wire.trace_ids import TRACE_IDS

logger = logging.getLogger(__name__)

PERIOD_S: Final = 60.0


class ExportLog(logging.Handler):
    """Takes the SDK's warnings and errors, and logs the first of each minute, with the number of those before it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._next_s = float("-inf")
        self._num_left_out = 0

    def install(self) -> None:
        """Replace the handlers of the SDK's loggers."""
        root = logging.getLogger("opentelemetry")
        root.handlers[:] = [self]
        root.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        now_s = self._clock()
        if now_s < self._next_s:
            self._num_left_out += 1
            return
        self._next_s = now_s + PERIOD_S
        cause = record.exc_info[1] if record.exc_info else None
        text = one_line(cause) if cause is not None else " ".join(record.getMessage().split())
        token = TRACE_IDS.set(None)  # it is about no single request
        logger.warning("spans are not sent: %s (further messages=%d)", text, self._num_left_out)
        TRACE_IDS.reset(token)
        self._num_left_out = 0
