"""Uniform numbers as a stateless hash of (seed, position): SplitMix64 (Steele et al. 2014).

A sequence's draws depend on nothing else in the batch and survive preemption. Torch-free.
"""

from __future__ import annotations

ACCEPT_STREAM = 0x5DEECE66D1234567
"""Xor-ed into the seed for numbers that decide whether a draft is kept: independent of those that draw tokens."""
DRAFT_STREAM = 0x2545F4914F6CDD1D
"""Xor-ed into the seed for numbers that drafts are drawn with: independent of all others."""

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from an int64 seed and a position."""
    z = (seed + (position + 1) * _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * _FIRST) & _WORD
    z = ((z ^ (z >> 27)) * _SECOND) & _WORD
    z ^= z >> 31
    return (z >> 11) * 2.0**-53
