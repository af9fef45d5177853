"""Packed matrices hold what was packed: GGUF blocks exactly up to float16 scales, floats within their format."""

from __future__ import annotations

import numpy as np
import pytest

from plugserve.backends.cpu.gguf_codes import READERS
from plugserve.backends.cpu.packing import BFLOAT16, CODES4, pack_bfloat16, pack_codes
from plugserve.backends.cpu.quantize import to_int4, to_int8
from plugserve.backends.torch.weights.gguf_blocks import dequantize
from plugserve.core.model_files.gguf_types import GGML_TYPES

SIZES = {name: (elements, size) for name, elements, size in GGML_TYPES.values()}


def unpacked(packed):
    """A matrix's floats [n, k], by native.h's words."""
    n, k = packed.n, packed.k
    if packed.format == BFLOAT16:
        bits = packed.codes.swapaxes(1, 2).reshape(n, k).astype(np.uint32) << 16
        return bits.view(np.float32)
    values = np.empty((n, k), dtype=np.float32)
    for row in range(n):
        for column in range(k):
            i, r, b, within = row // 16, row % 16, column // 32, column % 32
            if packed.format == CODES4:
                byte = packed.codes[i, b, within % 16 // 4, r, within % 4]
                code = int(byte) & 15 if within < 16 else int(byte) >> 4
            else:
                code = int(packed.codes[i, b, within // 4, r, within % 4])
            scale = packed.scales.view(np.float16)[i, column // packed.group, r].astype(np.float32)
            if packed.minima is None:
                values[row, column] = scale * (code - packed.zero)
            else:
                values[row, column] = scale * code + packed.minima.view(np.float16)[i, column // packed.group, r]
    return values


@pytest.mark.parametrize("type_name", READERS)
def test_gguf_blocks(type_name):
    elements, size = SIZES[type_name]
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (20, 512 // elements, size), dtype=np.uint8)
    places = {"Q6_K": (208,), "Q4_0": (0,), "Q8_0": (0,), "Q5_0": (0,)}.get(type_name, (0, 2))
    for place in places:  # scales that are numbers
        scales = draw.uniform(0.001, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = scales.view(np.uint8).reshape(*scales.shape, 2)
    expected = dequantize(blocks.reshape(-1), type_name, (20, 512))
    packed = pack_codes(READERS[type_name](blocks))
    assert (packed.n, packed.k) == (32, 512)
    np.testing.assert_allclose(unpacked(packed)[:20], expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    if type_name in ("Q4_0", "Q4_1", "Q8_0"):  # their scales are float16 in the file
        np.testing.assert_allclose(unpacked(packed)[:20], expected, rtol=1e-6, atol=1e-7)


def test_bfloat16_with_padding():
    values = np.random.default_rng(0).standard_normal((18, 40)).astype(np.float32)
    packed = pack_bfloat16(values)
    assert (packed.n, packed.k) == (32, 64)
    found = unpacked(packed)
    np.testing.assert_allclose(found[:18, :40], values, rtol=2**-8)
    assert not found[18:].any()
    assert not found[:, 40:].any()


@pytest.mark.parametrize(("quantise", "steps"), [(to_int8, 254), (to_int4, 15)])
def test_floats_are_within_half_a_step(quantise, steps):
    values = np.random.default_rng(0).standard_normal((16, 96)).astype(np.float32)
    values[3, :32] = 0
    found = unpacked(pack_codes(quantise(values)))
    groups = values.reshape(16, 3, 32)
    spread = 2 * np.abs(groups).max(-1) if steps == 254 else groups.max(-1) - groups.min(-1)
    error = np.abs(found - values).reshape(16, 3, 32).max(-1)
    assert (error <= 0.51 * spread / steps + 2e-3 * np.abs(groups).max(-1)).all()
