"""Memory that the native library reads: large, aligned, and in large pages where the system has them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

_CHUNK = 32 << 20
_PAGE = 2 << 20
_ALIGNMENT = 64


class Arena:
    """Grows by chunks; nothing is freed before the arena."""

    def __init__(self) -> None:
        self._chunks: list[Any] = []
        self._free = np.empty(0, dtype=np.uint8)
        self.num_bytes = 0
        """Bytes that were taken."""

    def take(self, num_bytes: int) -> Any:
        """Zeroed bytes, aligned; pages that are never written take no memory."""
        size = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if size > len(self._free):
            self._free = self._chunk(max(size, _CHUNK))
        taken, self._free = self._free[:num_bytes], self._free[size:]
        self.num_bytes += size
        return taken

    def place(self, array: Any) -> int:
        """The address of a copy of array."""
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        taken = self.take(len(raw) + _ALIGNMENT)
        taken[: len(raw)] = raw
        return int(taken.ctypes.data)

    def _chunk(self, num_bytes: int) -> Any:
        size = -(-num_bytes // _PAGE) * _PAGE
        chunk = mmap.mmap(-1, size + _PAGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            chunk.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(chunk, dtype=np.uint8)
        start = -int(whole.ctypes.data) % _PAGE
        self._chunks.append(chunk)
        return whole[start : start + size]
