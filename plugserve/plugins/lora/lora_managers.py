"""LoRA adapters as a plugin (`--enable-lora`): reads PEFT's safetensors, serves several adapters in one batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec

from plugserve.core.contracts.factories import LoraContext, LoraFactory
from plugserve.core.contracts.lora import LoraManager
from plugserve.core.plugin_system.hookspecs import hookimpl

log = logging.getLogger(__name__)


def make_lora(context: LoraContext) -> LoraManager:
    """Triton's kernels on a GPU, plain torch elsewhere."""
    if context.device.startswith("cuda") and find_spec("triton") is not None:
        from plugserve.plugins.lora.batched import BatchedLora

        return BatchedLora(context.lora_spec)
    if context.device != "cpu":
        log.warning("Triton is not installed: LoRA runs in plain torch, one adapter after another")
    from plugserve.plugins.lora.gathered import GatheredLora

    return GatheredLora(context.lora_spec)


@hookimpl
def plugserve_lora_managers() -> Mapping[str, LoraFactory]:
    return {"lora": make_lora}
