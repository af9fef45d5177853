"""Triton's paged attention on a GPU against float64: groups, head sizes, block sizes, windows, caps, ragged rows."""

import pytest
import torch

from plugserve.core.contracts.attention import AttentionSpec
from tests.plugins.attention.paged_cases import differences, make_triton

BATCHES = {
    "decode": [(1, 1), (1, 16), (1, 17), (1, 127), (1, 128), (1, 1000), (1, 2049), (1, 4000)],
    "decode, many": [(1, 3 + 37 * i % 900) for i in range(200)],
    "decode, one long": [(1, 6000)],
    "prompts": [(5, 5), (128, 128), (129, 129), (700, 700), (2, 2)],
    "mixed": [(1, 50), (7, 7), (0, 18), (1, 1016), (300, 1500), (1, 17), (64, 64), (2, 1000), (33, 65)],
}


def check(batch, heads, kv_heads, head_dim, *, dtype="bfloat16", block_size=16, window=None, soft_cap=None):
    torch.manual_seed(0)
    spec = AttentionSpec(2, heads, kv_heads, head_dim, head_dim**-0.5, dtype, "cuda", (5, window), soft_cap)
    out, expected = differences(make_triton, spec, BATCHES[batch], block_size)
    assert not out.isnan().any()
    error = (out - expected).norm() / expected.norm()
    assert error < {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype], error


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (8, 2), (28, 4), (16, 2)])
def test_groups_and_head_sizes(batch, heads, kv_heads, head_dim):
    check(batch, heads, kv_heads, head_dim)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("window", [None, 100, 1024])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("block_size", [16, 32])
def test_windows_caps_and_block_sizes(batch, window, soft_cap, block_size):
    check(batch, 8, 2, 128, window=window, soft_cap=soft_cap, block_size=block_size)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_dtypes(batch, dtype, head_dim):
    check(batch, 6, 2, head_dim, dtype=dtype)
