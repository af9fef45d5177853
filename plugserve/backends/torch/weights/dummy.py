"""Random weights for measuring speed and memory without a checkpoint."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from plugserve.core.memory.machine import usable_cores

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 22  # numbers that one thread makes at a time


def dummy_tensor(name: str, shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor that depends on name and seed alone: norms are near 1, biases near 0, matrices scaled by fan-in so
    that activations neither vanish nor overflow."""
    import torch

    noise = torch.from_numpy(_noise(zlib.crc32(f"{seed}:{name}".encode()), math.prod(shape))).view(tuple(shape))
    if "norm" in name and not name.endswith("bias"):
        return (1.0 + 0.02 * noise).to(dtype)
    fan_in = shape[-1] if len(shape) > 1 else 2500
    return noise.div_(fan_in**0.5).to(dtype)


def _noise(seed: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """size normal float32 numbers, generated on all cores; the same for any number of cores."""
    out = np.empty(size, dtype=np.float32)

    def fill(start: int) -> None:
        generator = np.random.Generator(np.random.SFC64([seed, start]))
        generator.standard_normal(dtype=np.float32, out=out[start : start + _CHUNK])

    list(_threads().map(fill, range(0, size, _CHUNK)))
    return out


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="dummy-weights")
