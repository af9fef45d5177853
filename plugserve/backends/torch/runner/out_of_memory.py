"""Failed allocations: recognises torch's on a GPU, the C library's behind torch and numpy, and those of libraries, and
explains them by the memory ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from plugserve.core.contracts.memory import MemoryLedger
from plugserve.core.errors import one_line
from plugserve.core.memory.ledger_text import summary, table

log = logging.getLogger(__name__)

_MESSAGES = (
    "can't allocate memory",  # torch's allocator of host memory
    "not enough memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _MESSAGES)


def release_cached_memory() -> None:
    """Give what torch's allocators keep back to the device, for the allocations that follow."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


class ExplainedMemoryError(MemoryError):
    """One that was reported; its text is the message for the requests."""


class MemoryReport:
    """Explains failed allocations of a loaded model, whose ledger was made before loading."""

    def __init__(self, ledger: Callable[[], MemoryLedger]) -> None:
        self._ledger = ledger

    def report(self, error: BaseException) -> str:
        """Log the ledger; returns the message for the requests that fail."""
        if isinstance(error, ExplainedMemoryError):
            return str(error)
        ledger = self._ledger()
        log.error("out of memory in a step, the engine goes on: %s", one_line(error))
        for line in table(ledger).splitlines():
            log.error("memory: %s", line)
        return f"memory ran out in the request's step; the model was to take {summary(ledger)}"
