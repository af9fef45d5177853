"""The built-in LoRA managers pass the conformance cases."""

from plugserve.plugins.lora.batched import BatchedLora
from plugserve.plugins.lora.lora_managers import make_lora
from plugserve.testing import LoraConformance


class TestLora(LoraConformance):
    def make_lora_manager(self, context):
        return make_lora(context)


class TestBatchedLora(LoraConformance):
    """The kernels, in Triton's interpreter where there is no GPU."""

    def make_lora_manager(self, context):
        return BatchedLora(context.lora_spec)
