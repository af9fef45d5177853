"""Floating-point weights as codes of 8 or 4 bits, in groups of 32 inputs."""

from __future__ import annotations

import numpy as np

from plugserve.backends.cpu.gguf_codes import Codes, Floats

_GROUP = 32


def to_int8(values: Floats) -> Codes:
    """values [n, k] around zero: the largest of a group becomes 127."""
    groups = values.reshape(len(values), -1, _GROUP)
    scales = (np.abs(groups).max(-1) / 127).astype(np.float16).astype(np.float32)
    codes = np.rint(groups / np.where(scales == 0, 1, scales)[..., None]).clip(-127, 127) + 128
    return Codes(codes.reshape(values.shape).astype(np.uint8), 8, _GROUP, scales, zero=128)


def to_int4(values: Floats) -> Codes:
    """values [n, k] from the least to the largest of a group, in 15 steps."""
    groups = values.reshape(len(values), -1, _GROUP)
    minima = groups.min(-1).astype(np.float16).astype(np.float32)
    scales = ((groups.max(-1) - minima) / 15).astype(np.float16).astype(np.float32)
    codes = np.rint((groups - minima[..., None]) / np.where(scales == 0, 1, scales)[..., None]).clip(0, 15)
    return Codes(codes.reshape(values.shape).astype(np.uint8), 4, _GROUP, scales, minima=minima)
