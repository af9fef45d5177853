"""Draws by inverting cumulative sums, and the seeded numbers that they are inverted at.

The torch form of core/sampling_law/seeded_numbers.py and of the reference's draw.
"""

from __future__ import annotations

import torch

from plugserve.core.sampling_law.seeded_numbers import ACCEPT_STREAM, DRAFT_STREAM

_BLOCK = 256


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), float64 [B], from int64 seeds and positions [B] (SplitMix64)."""
    z = seeds + (positions + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    z = z ^ _shift(z, 31)
    return _shift(z, 11).double() * 2.0**-53


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def accept_numbers(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """uniform, for the decision whether a draft is kept."""
    return uniform(seeds ^ ACCEPT_STREAM, positions)


def draft_numbers(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """uniform, for drawing drafts."""
    return uniform(seeds ^ DRAFT_STREAM, positions)


def invert_cdf(shares: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The index in each row of shares [R, K] (not normalised) that numbers [R] in [0, 1) select; never a zero one."""
    cdf = shares.double().cumsum(-1)
    return _search(cdf, numbers * cdf[:, -1])


def _search(cdf: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index in each row of cdf [R, K] whose value is above target [R], which is kept below the last value."""
    below = cdf[:, -1].nextafter(torch.zeros_like(target))
    found = torch.searchsorted(cdf, torch.minimum(target, below).unsqueeze(1), right=True).squeeze(1)
    return found.clamp_(max=cdf.shape[1] - 1)  # rows of NaN find nothing


def invert_wide_cdf(shares: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """As invert_cdf for a whole vocabulary: the block of tokens first, then the token."""
    num_rows, size = shares.shape
    padded = torch.nn.functional.pad(shares, (0, -size % _BLOCK)) if size % _BLOCK else shares
    blocks = padded.view(num_rows, -1, _BLOCK)
    cdf = blocks.sum(-1).double().cumsum(-1)
    target = numbers * cdf[:, -1]
    block = _search(cdf, target)
    each = torch.arange(num_rows, device=shares.device)
    before = torch.where(block > 0, cdf[each, (block - 1).clamp(min=0)], 0.0)
    inner = blocks[each, block].double().cumsum(-1)
    return (block * _BLOCK + _search(inner, target - before)).clamp_(max=size - 1)
