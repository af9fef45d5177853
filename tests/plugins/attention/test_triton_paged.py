"""Triton's paged attention against a float64 reference, small enough for Triton's interpreter; tests/gpu has more."""

from __future__ import annotations

import pytest
import torch

from plugserve.core.contracts.attention import AttentionSpec
from plugserve.plugins.attention import triton_paged
from plugserve.testing.contexts import attention_context
from tests.plugins.attention.paged_cases import BATCHES, differences, make_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def spec_of(num_heads, num_kv_heads, head_dim, window=None, soft_cap=None, dtype="float32"):
    scale = head_dim**-0.5
    return AttentionSpec(2, num_heads, num_kv_heads, head_dim, scale, dtype, DEVICE, (5, window), soft_cap)


PLAIN = (2, 2, 16, None, None, "float32")
WINDOW_AND_SOFT_CAP = (4, 2, 16, 20, 0.7, "float32")
NO_POWER_OF_TWO = (3, 1, 24, None, None, "float16")  # a head of 24
NARROW_WINDOW = (2, 1, 16, 8, None, "float32")


@pytest.mark.parametrize(
    ("name", "num_heads", "num_kv_heads", "head_dim", "window", "soft_cap", "dtype"),
    [(name, *spec) for name in BATCHES for spec in (PLAIN, WINDOW_AND_SOFT_CAP)]
    + [(name, *spec) for name in ("mixed", "decode, ragged") for spec in (NO_POWER_OF_TWO, NARROW_WINDOW)],
)
def test_equals_float64_reference(name, num_heads, num_kv_heads, head_dim, window, soft_cap, dtype):
    torch.manual_seed(0)
    spec = spec_of(num_heads, num_kv_heads, head_dim, window, soft_cap, dtype)
    out, expected = differences(make_triton, spec, BATCHES[name])
    tolerance = 2e-5 if dtype == "float32" else 4e-3
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 70])
def test_a_row_split_over_programs_is_merged(monkeypatch, window):
    monkeypatch.setattr(triton_paged, "_LEAST_SPLIT", 16)
    torch.manual_seed(0)
    out, expected = differences(make_triton, spec_of(2, 1, 16, window), [(1, 150), (1, 3), (1, 90)])
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)


def test_block_sizes():
    torch.manual_seed(0)
    out, expected = differences(make_triton, spec_of(2, 1, 16), BATCHES["mixed"], block_size=32)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("spec", "block_size", "reason"),
    [
        (AttentionSpec(1, 2, 1, 320, 1.0, "float32", DEVICE), 16, "head_dim 320 is over 256"),
        (AttentionSpec(1, 2, 1, 64, 1.0, "float32", DEVICE), 24, "block size 24 is not a power of two"),
        (AttentionSpec(1, 128, 1, 64, 1.0, "float32", DEVICE), 16, "128 query heads to a key head are over 64"),
    ],
)
def test_unsupported_specs_are_refused(spec, block_size, reason):
    backend = triton_paged.TritonPagedAttention(block_size, is_interpreted=not torch.cuda.is_available())
    assert backend.refusal(spec) == reason


def test_refuses_a_cpu_even_where_the_interpreter_is_on():
    spec = AttentionSpec(1, 2, 1, 64, 1.0, "float32", "cpu")
    backend = triton_paged.make_triton_paged(attention_context(spec))
    assert backend.refusal(spec) == "no GPU (device cpu)"
