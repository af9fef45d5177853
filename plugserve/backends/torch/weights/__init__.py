"""Weights as a stream of (Hugging Face's tensor name, tensor on the CPU).

One file a format; formats.py chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugserve.backends.torch.weights.dummy import dummy_tensor
from plugserve.backends.torch.weights.formats import open_weights
from plugserve.core.contracts.weights import WeightSource
from plugserve.core.model_files.model_source import ModelSource, read_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["dummy_tensor", "iterate_weights"]


def iterate_weights(
    source: ModelSource, *, load_format: str = "auto", show_progress: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a model through the built-in formats: GGUF and quantised ones as float32, others as stored."""
    config = read_config(source)
    weights = WeightSource(source.path, config, shapes=lambda: _shapes(config), show_progress=show_progress)
    return iter(open_weights(weights, load_format))


def _shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    from plugserve.backends.torch.models.make_model import parameter_shapes

    return parameter_shapes(config)
