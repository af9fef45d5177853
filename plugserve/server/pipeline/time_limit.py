"""--request-timeout: how long a request may take, from its start to the last byte of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugserve.core.errors import RequestTimeoutError


def too_late(timeout_s: float) -> RequestTimeoutError:
    """The error of a request whose time is up."""
    return RequestTimeoutError(f"The request took longer than {timeout_s:g} s and was ended.")


@asynccontextmanager
async def within(timeout_s: float | None, started_s: float) -> AsyncIterator[None]:
    """A context that is cancelled timeout_s after started_s (on time.perf_counter's clock); None is no limit. Raises
    RequestTimeoutError (504)."""
    left_s = None if timeout_s is None else max(0.0, started_s + timeout_s - time.perf_counter())
    try:
        async with asyncio.timeout(left_s) as limit:
            yield
    except TimeoutError:
        if timeout_s is None or not limit.expired():
            raise
        raise too_late(timeout_s) from None
