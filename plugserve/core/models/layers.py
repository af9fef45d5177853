"""The pieces of a decoder as plain functions over tensors. Knows nothing of a whole model, pages or requests.

Shapes: T tokens, H hidden, D head_dim.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import linear

from plugserve.core.models.decoder_spec import RopeSpec

__all__ = ["apply_rope", "gated_mlp", "inverse_frequencies", "linear", "rms_norm", "rope_table"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, H] / rms(x) * weight; the mean square in float32 (Zhang & Sennrich 2019)."""
    if x.dtype == torch.float32:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def gated_mlp(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, from [T, 2 I] to [T, I] (SwiGLU; Shazeer 2020)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """[D / 2] float32: theta ** (-2 i / D), scaled as rope.kind says (RoFormer; Llama 3's long-context scaling)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / float(rope.scaling["factor"])
    if rope.kind == "llama3":
        return _scale_llama3(frequencies, rope)
    return frequencies


def _scale_llama3(frequencies: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    """Long wavelengths are stretched by factor, short ones kept, those between blended."""
    factor = float(rope.scaling["factor"])
    low, high = float(rope.scaling["low_freq_factor"]), float(rope.scaling["high_freq_factor"])
    original = float(rope.scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_between, blended, scaled)


def rope_table(frequencies: torch.Tensor, num_positions: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin, [num_positions, D] each; sin's first half is negated, to go with rolled halves."""
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, heads, D] by its tokens' angles; cos and signed_sin [T, 1, D]. Halves are paired (Llama)."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin)
