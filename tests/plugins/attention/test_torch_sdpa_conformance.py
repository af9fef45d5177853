"""torch-sdpa keeps the contract of attention backends."""

from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa
from plugserve.testing import AttentionConformance


class TestTorchSdpa(AttentionConformance):
    def make_attention(self, context):
        return make_torch_sdpa(context)


class TestTorchSdpaInBfloat16(AttentionConformance):
    dtype = "bfloat16"
    tolerance = (2e-2, 2e-2)
    shapes = ((8, 2, 64),)

    def make_attention(self, context):
        return make_torch_sdpa(context)
