"""Quantised GGUF blocks as codes with scales, without a detour over floats: weight = scale * (code - zero), or scale *
code + minimum. Layouts follow ggml's block_q* structs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Codes:
    """Of a matrix with n outputs and k inputs: codes uint8 [n, k], of `bits` bits; scales and minima [n, k / group]."""

    codes: Bytes
    bits: int
    group: int
    scales: Floats
    zero: int = 0
    minima: Floats | None = None


def _half(blocks: Bytes, start: int) -> Floats:
    """The float16 at byte start of each block [n, b, bytes]: [n, b]."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """16 bytes a block to 32 codes: low nibbles come first."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _flat(codes: Any) -> Bytes:
    return np.asarray(codes.reshape(codes.shape[0], -1), dtype=np.uint8)


def _q4_0(blocks: Bytes) -> Codes:
    return Codes(_flat(_nibbles(blocks[..., 2:])), 4, 32, _half(blocks, 0), zero=8)


def _q4_1(blocks: Bytes) -> Codes:
    return Codes(_flat(_nibbles(blocks[..., 4:])), 4, 32, _half(blocks, 0), minima=_half(blocks, 2))


def _five_bits(blocks: Bytes, start: int) -> Bytes:
    """4 bytes with the fifth bits from byte start on, then nibbles."""
    fifth = np.unpackbits(blocks[..., start : start + 4], axis=-1, bitorder="little")
    return _flat(_nibbles(blocks[..., start + 4 :]) | fifth << 4)


def _q5_0(blocks: Bytes) -> Codes:
    return Codes(_five_bits(blocks, 2), 8, 32, _half(blocks, 0), zero=16)


def _q5_1(blocks: Bytes) -> Codes:
    return Codes(_five_bits(blocks, 4), 8, 32, _half(blocks, 0), minima=_half(blocks, 2))


def _q8_0(blocks: Bytes) -> Codes:
    return Codes(_flat(blocks[..., 2:] ^ 0x80), 8, 32, _half(blocks, 0), zero=128)  # signed to offset


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 parts of each Q4_K or Q5_K block, [n, 8 b]: six bits each in 12 bytes."""
    packed = blocks[..., 4:16]
    low, high, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate((low & 63, rest & 15 | low >> 6 << 4), axis=-1)
    minima = np.concatenate((high & 63, rest >> 4 | high >> 6 << 4), axis=-1)
    d, least = _half(blocks, 0)[..., None], _half(blocks, 2)[..., None]
    return (d * scales).reshape(len(blocks), -1), (-least * minima).reshape(len(blocks), -1)


def _parts(packed: Bytes) -> Bytes:
    """128 bytes a block to 8 parts of 32 codes: the low nibbles of 32 bytes, then their high ones, four times."""
    quarters = packed.reshape(*packed.shape[:-1], 4, 1, 32)
    return np.concatenate((quarters & 15, quarters >> 4), axis=-2)


def _q4_k(blocks: Bytes) -> Codes:
    scales, minima = _k_scales(blocks)
    return Codes(_flat(_parts(blocks[..., 16:])), 4, 32, scales, minima=minima)


def _q5_k(blocks: Bytes) -> Codes:
    scales, minima = _k_scales(blocks)
    codes = _parts(blocks[..., 48:])  # [n, b, 4, 2, 32]
    bits = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # of part 0 to 7
    return Codes(_flat(codes | bits.reshape(codes.shape) << 4), 8, 32, scales, minima=minima)


def _q6_k(blocks: Bytes) -> Codes:
    low, high = blocks[..., :128], blocks[..., 128:192]
    halves = low.reshape(*low.shape[:-1], 2, 2, 32)  # of 128 values: bytes 0..31 and 32..63
    nibbles = np.concatenate((halves & 15, halves >> 4), axis=-2)  # [n, b, 2, 4, 32]
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    upper = high.reshape(*high.shape[:-1], 2, 1, 32) >> shifts & 3
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8) * _half(blocks, 208)[..., None]
    return Codes(_flat(nibbles | upper << 4), 8, 16, scales.reshape(len(blocks), -1).astype(np.float32), zero=32)


READERS: Mapping[str, Callable[[Bytes], Codes]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""By ggml's name of the type: codes of blocks [n, blocks of a row, bytes of a block]."""
