"""A picture of the KV blocks in at most 1024 cells of one byte."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

FREE: Final = 0
CACHED: Final = 1
IN_USE: Final = 2
MOST_CELLS: Final = 1024
_HALF: Final = 127


def block_map(states: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """One byte for each run of blocks of equal length (the last one may be shorter): 0 where all of them are free; from
    1 to 127 where some are cached and none is in use, 127 for all; from 128 to 255 where some are in use, 255 for all.

    states holds FREE, CACHED or IN_USE for each block."""
    if not len(states):
        return b""
    starts = np.arange(0, len(states), -(-len(states) // MOST_CELLS))
    lengths = np.diff(np.append(starts, len(states)))
    in_use = np.add.reduceat(states == IN_USE, starts, dtype=np.int64) / lengths
    cached = np.add.reduceat(states == CACHED, starts, dtype=np.int64) / lengths
    cells = np.where(in_use > 0, _HALF + np.ceil(in_use * (_HALF + 1)), np.ceil(cached * _HALF))
    return cells.astype(np.uint8).tobytes()
