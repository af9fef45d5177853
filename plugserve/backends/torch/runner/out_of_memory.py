"""Recognises failed allocations: torch's on a GPU, the C library's behind torch and numpy, and those of libraries."""

from __future__ import annotations

import torch

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
