"""The built-in attention backends pass the conformance cases; without a GPU, Triton runs in its interpreter."""

import importlib.util

import pytest
import torch

from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa
from plugserve.testing import AttentionConformance
from tests.plugins.attention.paged_cases import make_triton


class TestTorchSdpa(AttentionConformance):
    def make_attention(self, context):
        return make_torch_sdpa(context)


class TestTorchSdpaInBfloat16(AttentionConformance):
    dtype = "bfloat16"
    tolerance = (2e-2, 2e-2)
    shapes = ((8, 2, 64),)

    def make_attention(self, context):
        return make_torch_sdpa(context)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
class TestTritonPaged(AttentionConformance):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = ((2, 1, 16),)
    windows = (7,)
    soft_caps = (None,)

    def make_attention(self, context):
        return make_triton(context)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTritonPagedOnGpu(AttentionConformance):
    device = "cuda"
    dtype = "bfloat16"
    tolerance = (2e-2, 2e-2)
    shapes = ((4, 4, 64), (8, 2, 64), (9, 3, 64), (32, 8, 128))

    def make_attention(self, context):
        return make_triton(context)
