"""LoRA adapters as a plugin (`--enable-lora`): reads PEFT's safetensors, serves several adapters in one batch."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.contracts import LoraFactory, LoraManager, PluginContext
from plugserve.core.hookspecs import hookimpl


def make_lora(context: PluginContext) -> LoraManager:
    from plugserve.plugins.lora.gathered import GatheredLora

    assert context.lora_spec is not None
    return GatheredLora(context.lora_spec)


@hookimpl
def plugserve_lora_managers() -> Mapping[str, LoraFactory]:
    return {"lora": make_lora}
