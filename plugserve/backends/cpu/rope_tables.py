"""Tables of cosines and sines by position, in numpy: backends/torch/models/rope.py has the same frequencies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plugserve.core.contracts.model import RopeSpec

KINDS = ("default", "linear", "llama3")
"""Those that are covered; the others are left to torch."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


def rope_tables(spec: RopeSpec, head_dim: int, num_positions: int, divisors: Floats | None) -> tuple[Floats, Floats]:
    """Cosines and sines [num_positions, rotated dimensions / 2]. divisors are GGUF's form of Llama 3's scaling."""
    frequencies = _frequencies(spec, int(head_dim * spec.rotary_factor))
    if divisors is not None:
        frequencies = frequencies / divisors
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _frequencies(spec: RopeSpec, size: int) -> Floats:
    frequencies = (1.0 / spec.theta ** (np.arange(0, size, 2) / size)).astype(np.float32)
    if spec.kind == "linear":
        return frequencies / np.float32(spec.scaling["factor"])
    return _scale_llama3(frequencies, spec) if spec.kind == "llama3" else frequencies


def _scale_llama3(frequencies: Floats, spec: RopeSpec) -> Floats:
    """Long wavelengths are stretched by factor, short ones kept, those between blended."""
    factor = float(spec.scaling["factor"])
    low, high = float(spec.scaling["low_freq_factor"]), float(spec.scaling["high_freq_factor"])
    original = float(spec.scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    scaled = np.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return np.where(is_between, blended, scaled).astype(np.float32)
