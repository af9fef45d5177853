"""Rotary positions: frequencies of every kind, as transformers computes them, and tables of cosines and sines.

Two kinds depend on how long a sequence is (RopeSpec.length_border). Each
token comes with the length that its frequencies follow: for the tokens of a prompt the prompt's length, for a
generated one its own position + 1, or what core set when it computed a sequence anew (contracts.LengthRule).

Shapes: T tokens, D head_dim, R the rotated part of it.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from plugserve.core.contracts.model import RopeSpec
from plugserve.core.errors import ModelError

Angles = tuple[torch.Tensor, torch.Tensor]
"""cos and signed sin [T, 1, R]; sin's first half is negated, to go with rolled halves."""


class Rope(Protocol):
    """Computes the angles of a step's tokens."""

    def angles(self, positions: torch.Tensor, lengths: torch.Tensor | None) -> Angles:
        """The angles of tokens at positions [T] in sequences of lengths [T] (None for kinds that don't use them)."""

    def divide(self, divisors: torch.Tensor) -> None:
        """Divide each frequency [R / 2], GGUF's form of Llama 3's scaling."""


def make_rope(spec: RopeSpec, head_dim: int, *, num_positions: int, dtype: torch.dtype, device: torch.device) -> Rope:
    """The Rope of a spec, for positions below num_positions."""
    if spec.kind == "dynamic":
        return _DynamicRope(spec, rotary_size(spec, head_dim), dtype, device)
    if spec.kind == "longrope":
        return _LongRope(spec, rotary_size(spec, head_dim), num_positions, dtype, device)
    frequencies, factor = inverse_frequencies(spec, head_dim)
    return _FixedRope(frequencies, factor, num_positions, dtype, device)


def rotary_size(spec: RopeSpec, head_dim: int) -> int:
    """The number of rotated dimensions of a head."""
    return int(head_dim * spec.rotary_factor)


class _FixedRope:
    """Angles by position alone, looked up."""

    def __init__(
        self, frequencies: torch.Tensor, factor: float, num_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._frequencies = frequencies
        self._factor = factor
        self._num_positions = num_positions
        self._dtype = dtype
        self._device = device
        self._fill()

    def _fill(self) -> None:
        positions = torch.arange(self._num_positions, dtype=torch.float32).unsqueeze(1)
        self._cos, self._sin = _cos_sin(positions, self._frequencies, self._factor, self._dtype, self._device)

    def angles(self, positions: torch.Tensor, lengths: torch.Tensor | None) -> Angles:
        return self._cos[positions], self._sin[positions]

    def divide(self, divisors: torch.Tensor) -> None:
        self._frequencies = self._frequencies / divisors.float()
        self._fill()


class _LongRope:
    """Two tables in one: rows from num_positions on are those of long sequences."""

    def __init__(self, spec: RopeSpec, size: int, num_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        border = spec.length_border
        assert border is not None
        self._border = border
        self._num_positions = num_positions
        factor = _longrope_attention_factor(spec)
        positions = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1)
        tables = [
            _cos_sin(positions, _longrope_frequencies(spec, size, key), factor, dtype, device)
            for key in ("short_factor", "long_factor")
        ]
        self._cos, self._sin = (torch.cat(parts) for parts in zip(*tables, strict=True))

    def angles(self, positions: torch.Tensor, lengths: torch.Tensor | None) -> Angles:
        assert lengths is not None
        rows = positions + (lengths > self._border) * self._num_positions
        return self._cos[rows], self._sin[rows]

    def divide(self, divisors: torch.Tensor) -> None:
        raise ModelError("rope_freqs.weight beside longrope is not supported")


class _DynamicRope:
    """The base grows with the sequence, so each token's frequencies are computed for its length."""

    def __init__(self, spec: RopeSpec, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._theta = spec.theta
        self._context = spec.context
        self._factor = float(spec.scaling["factor"])
        self._size = size
        self._dtype = dtype
        self._exponents = _exponents(size).to(device)

    def angles(self, positions: torch.Tensor, lengths: torch.Tensor | None) -> Angles:
        assert lengths is not None
        stretch = (self._factor * lengths.clamp_min(self._context) / self._context) - (self._factor - 1)
        bases = self._theta * stretch ** (self._size / (self._size - 2))
        frequencies = 1.0 / (bases.unsqueeze(1) ** self._exponents)  # [T, R / 2]
        return _cos_sin(positions.float().unsqueeze(1), frequencies, 1.0, self._dtype, positions.device)

    def divide(self, divisors: torch.Tensor) -> None:
        raise ModelError("rope_freqs.weight beside dynamic RoPE scaling is not supported")


def _cos_sin(
    positions: torch.Tensor, frequencies: torch.Tensor, factor: float, dtype: torch.dtype, device: torch.device
) -> Angles:
    """Angles of positions [N, 1] and frequencies [R / 2] or [N, R / 2], times the kind's attention factor."""
    angles = positions * frequencies
    cos, sin = angles.cos() * factor, angles.sin() * factor
    wide_cos, wide_sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return wide_cos.unsqueeze(1).to(device, dtype), wide_sin.unsqueeze(1).to(device, dtype)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first R dimensions of x [T, heads, D] by its tokens' angles [T, 1, R]. Halves are paired (Llama)."""
    size = cos.shape[-1]
    if size < x.shape[-1]:
        return torch.cat((apply_rope(x[..., :size], cos, signed_sin), x[..., size:]), -1)
    return (x * cos).addcmul_(x.roll(size // 2, -1), signed_sin)


# ---------------------------------------------------------------- frequencies


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> tuple[torch.Tensor, float]:
    """[R / 2] float32 and the factor on cos and sin, for the kinds that don't depend on a sequence's length."""
    size = rotary_size(spec, head_dim)
    if spec.kind == "yarn":
        return _yarn_frequencies(spec, size), _yarn_attention_factor(spec)
    frequencies = 1.0 / (spec.theta ** _exponents(size))
    if spec.kind == "linear":
        return frequencies / float(spec.scaling["factor"]), 1.0
    if spec.kind == "llama3":
        return _scale_llama3(frequencies, spec), 1.0
    return frequencies, 1.0


def _exponents(size: int) -> torch.Tensor:
    return torch.arange(0, size, 2, dtype=torch.int64).float() / size


def _scale_llama3(frequencies: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    """Long wavelengths are stretched by factor, short ones kept, those between blended."""
    factor = float(spec.scaling["factor"])
    low, high = float(spec.scaling["low_freq_factor"]), float(spec.scaling["high_freq_factor"])
    original = float(spec.scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_between, blended, scaled)


def _yarn_frequencies(spec: RopeSpec, size: int) -> torch.Tensor:
    """Interpolated where a wavelength turns less than beta_slow times in the original context, kept where more than
    beta_fast times, ramped between (Peng et al. 2023, section 3.2)."""
    scaling = spec.scaling
    original = float(scaling["original_max_position_embeddings"])
    bounds = [
        size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))
        for turns in (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
    ]
    if scaling.get("truncate", True):
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    powers = spec.theta ** _exponents(size)
    return 1.0 / (_yarn_factor(spec) * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_factor(spec: RopeSpec) -> float:
    factor = spec.scaling.get("factor")
    return float(factor or spec.context / spec.scaling["original_max_position_embeddings"])


def _yarn_attention_factor(spec: RopeSpec) -> float:
    """mscale, and its DeepSeek form with two multipliers."""
    scaling, factor = spec.scaling, _yarn_factor(spec)
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def magnify(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnify(scaling["mscale"]) / magnify(scaling["mscale_all_dim"])
    return magnify(1)


def _longrope_frequencies(spec: RopeSpec, size: int, key: str) -> torch.Tensor:
    divisors = torch.tensor(spec.scaling[key], dtype=torch.float32)
    if divisors.shape != (size // 2,):
        raise ModelError(f"longrope's {key} should hold {size // 2} numbers, it holds {divisors.numel()}")
    return 1.0 / (divisors * spec.theta ** _exponents(size))


def _longrope_attention_factor(spec: RopeSpec) -> float:
    given, original = spec.scaling.get("attention_factor"), spec.scaling["original_max_position_embeddings"]
    if given is not None:
        return float(given)
    factor = spec.scaling.get("factor") or spec.context / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
