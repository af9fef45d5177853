"""Paged attention over torch against a float64 reference: ragged lengths, groups, block edges, windows, soft caps."""

from __future__ import annotations

import pytest
import torch

from plugserve.core.contracts.attention import AttentionSpec
from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa
from tests.plugins.attention.paged_cases import BATCHES, differences


@pytest.mark.parametrize("soft_cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 32), (9, 3, 64), (7, 1, 16)])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_float64_reference(name, num_heads, num_kv_heads, head_dim, window, soft_cap):
    torch.manual_seed(0)
    spec = AttentionSpec(
        2, num_heads, num_kv_heads, head_dim, head_dim**-0.5, "float32", "cpu", windows=(5, window), soft_cap=soft_cap
    )
    out, expected = differences(make_torch_sdpa, spec, BATCHES[name])
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-5)
