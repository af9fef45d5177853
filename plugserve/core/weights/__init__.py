"""Weights as a stream of (Hugging Face's tensor name, tensor on the CPU). Knows nothing of models or devices.

One file a format; this one only chooses. Nothing is kept: a tensor lives as long as its consumer holds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_source import ModelSource
from plugserve.core.weights.dummy import dummy_tensor
from plugserve.core.weights.gguf import iterate_gguf
from plugserve.core.weights.safetensors import iterate_safetensors

if TYPE_CHECKING:
    import torch

__all__ = ["dummy_tensor", "iterate_weights"]

_FORMATS = {"folder": "safetensors", "gguf": "gguf"}


def iterate_weights(
    source: ModelSource, *, load_format: str = "auto", show_progress: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a model, in the file's order. GGUF tensors come as float32, safetensors as they are stored.

    What can be told in advance (a missing shard, a type that isn't read) raises ModelError here, before any tensor.
    """
    is_format = _FORMATS[source.kind]
    if load_format not in ("auto", "safetensors", "gguf"):
        raise ConfigError(f"--load-format {load_format} does not read weights from {source.path} (use auto)")
    if load_format not in ("auto", is_format):
        raise ModelError(f"--load-format {load_format} does not fit {source.path}, whose weights are {is_format}")
    if source.kind == "gguf":
        return iterate_gguf(source.path, show_progress=show_progress)
    return iterate_safetensors(source.path, show_progress=show_progress)
