"""The built-in LoRA manager keeps the contract."""

from plugserve.plugins.lora.batched import make_lora
from plugserve.testing import LoraConformance


class TestLora(LoraConformance):
    def make_lora_manager(self, context):
        return make_lora(context)
