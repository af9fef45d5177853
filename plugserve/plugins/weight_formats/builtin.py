"""The built-in weight formats as a plugin. Hands out core's own readers, which import torch when they read."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.contracts import WeightFormatFactory
from plugserve.core.hookspecs import hookimpl
from plugserve.core.weights.formats import DummyFormat, GgufFormat, SafetensorsFormat, TorchFormat


@hookimpl
def plugserve_weight_formats() -> Mapping[str, WeightFormatFactory]:
    return {
        "safetensors": lambda context: SafetensorsFormat(),
        "gguf": lambda context: GgufFormat(),
        "pt": lambda context: TorchFormat(),
        "dummy": lambda context: DummyFormat(),
    }
