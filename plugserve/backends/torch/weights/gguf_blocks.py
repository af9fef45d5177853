"""Quantised ggml blocks to float32, bit for bit as ggml's reference does.

The plain formats are a few numpy operations on a chunk that fits a core's cache; the K formats and IQ4_NL go through
the gguf package's functions, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_CHUNK_ELEMENTS = 1 << 17
_HIGH_BITS = np.arange(32, dtype=np.uint32)


def _scale(blocks: Bytes, start: int) -> Floats:
    """The float16 at byte start of every block, as a column."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes, out: Floats) -> None:
    """16 bytes a block: low nibbles are values 0..15, high nibbles values 16..31."""
    out[:, :16] = packed & 0x0F
    out[:, 16:] = packed >> 4


def _five_bits(blocks: Bytes, start: int, out: Floats) -> None:
    """4 bytes with the fifth bits from byte start on, then nibbles."""
    _nibbles(blocks[:, start + 4 :], out)
    fifth = np.ascontiguousarray(blocks[:, start : start + 4]).view("<u4")
    out += ((fifth >> _HIGH_BITS) & 1) << 4


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(_scale(blocks, 0), blocks[:, 2:].view(np.int8), out=out, dtype=np.float32)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _scale(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _scale(blocks, 0)
    out += _scale(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    _five_bits(blocks, 2, out)
    out -= 16
    out *= _scale(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    _five_bits(blocks, 4, out)
    out *= _scale(blocks, 0)
    out += _scale(blocks, 2)


def _q8_k(blocks: Bytes, out: Floats) -> None:
    """A float32 scale, 256 int8 values, and 16 sums that only dot products need."""
    scale = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    np.multiply(scale, blocks[:, 4:260].view(np.int8), out=out, dtype=np.float32)


def _through_gguf(type_name: str) -> Callable[[Bytes, Floats], None]:
    def dequantize_chunk(blocks: Bytes, out: Floats) -> None:
        from gguf import quants

        out[:] = getattr(quants, type_name).dequantize_blocks(blocks)

    return dequantize_chunk


_BLOCKS: dict[str, Callable[[Bytes, Floats], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_K": _q8_k,
    **{name: _through_gguf(name) for name in ("Q4_K", "Q5_K", "Q6_K", "IQ4_NL")},
}
SUPPORTED_TYPES = ("F32", "F16", "BF16", *_BLOCKS)


def dequantize(data: Bytes, type_name: str, shape: tuple[int, ...]) -> Floats:
    """A new float32 array of shape from a tensor's bytes. type_name is one of SUPPORTED_TYPES."""
    if type_name == "F32":
        return data.view("<f4").reshape(shape).astype(np.float32)
    if type_name == "F16":
        return data.view("<f2").reshape(shape).astype(np.float32)
    if type_name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    out = np.empty(shape, dtype=np.float32)
    if out.size == 0:
        return out
    block_elements = 256 if type_name.endswith("_K") else 32
    values = out.reshape(-1, block_elements)
    blocks = data.reshape(len(values), -1)
    step = _CHUNK_ELEMENTS // block_elements
    for start in range(0, len(values), step):
        _BLOCKS[type_name](blocks[start : start + step], values[start : start + step])
    return out
