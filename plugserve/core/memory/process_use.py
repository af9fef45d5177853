"""This process's memory, as part of an engine's snapshot."""

from __future__ import annotations

from plugserve.core.contracts.memory import MemoryUse
from plugserve.core.memory.machine import process_memory


def process_use() -> MemoryUse:
    """The figures of the host alone."""
    own = process_memory()
    return MemoryUse(resident_bytes=own.resident_bytes, peak_resident_bytes=own.peak_bytes)
