"""Matrices in the layouts of native/native.h: tiles of 16 outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from plugserve.backends.cpu.gguf_codes import Bytes, Codes, Floats

TILE, BLOCK = 16, 32
BFLOAT16, CODES8, CODES4 = 1, 2, 3  # enum ps_format

Halves = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix for ps_matrix; n is padded to TILE and k to BLOCK."""

    format: int
    n: int
    k: int
    group: int
    zero: int
    codes: Bytes | Halves
    scales: Halves | None = None
    minima: Halves | None = None

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales, self.minima) if part is not None)


def _padded(array: Any, axis: int, size: int) -> Any:
    missing = -array.shape[axis] % size
    return np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)]) if missing else array


def pack_codes(codes: Codes) -> Packed:
    """k must be a multiple of BLOCK."""
    rows = _padded(codes.codes, 0, TILE)
    n, k = rows.shape
    if codes.bits == 4:
        parts = rows.reshape(n // TILE, TILE, k // BLOCK, 2, 4, 4)
        tiles = (parts[:, :, :, 0] | parts[:, :, :, 1] << 4).transpose(0, 2, 3, 1, 4)
    else:
        tiles = rows.reshape(n // TILE, TILE, k // BLOCK, 8, 4).transpose(0, 2, 3, 1, 4)
    return Packed(
        CODES4 if codes.bits == 4 else CODES8,
        n,
        k,
        codes.group,
        codes.zero,
        np.ascontiguousarray(tiles),
        _by_tiles(codes.scales),
        None if codes.minima is None else _by_tiles(codes.minima),
    )


def _by_tiles(numbers: Floats) -> Halves:
    """[n, groups] as float16 [n / TILE, groups, TILE]."""
    rows = _padded(numbers, 0, TILE).astype(np.float16).view(np.uint16)
    return np.ascontiguousarray(rows.reshape(len(rows) // TILE, TILE, -1).swapaxes(1, 2))


def pack_bfloat16(values: Floats) -> Packed:
    """values [n, k], rounded to nearest."""
    rows = to_bfloat16(_padded(_padded(values, 0, TILE), 1, BLOCK))
    n, k = rows.shape
    tiles = rows.reshape(n // TILE, TILE, k // 2, 2).swapaxes(1, 2)
    return Packed(BFLOAT16, n, k, BLOCK, 0, np.ascontiguousarray(tiles))


def to_bfloat16(values: Floats) -> Halves:
    """The bits of bfloat16 numbers, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
