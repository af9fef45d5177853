"""Made-up weights for measuring speed and memory without a checkpoint. Knows nothing of files."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dummy_tensor(name: str, shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor that depends on name and seed alone: norms are near 1, biases near 0, matrices scaled by fan-in so
    that activations neither vanish nor overflow."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    if "norm" in name and not name.endswith("bias"):
        return (1.0 + 0.02 * noise).to(dtype)
    fan_in = shape[-1] if len(shape) > 1 else 2500
    return noise.div(fan_in**0.5).to(dtype)
