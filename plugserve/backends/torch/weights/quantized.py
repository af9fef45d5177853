"""Quantised Hugging Face checkpoints, dequantised to float32 on the way in. Torch-free until something is read.

quantization_config names a checkpoint's packing. One Unpacker a method groups the tensors of a layer (a weight, its
scales, zero points, an order) and computes the weight; other tensors are returned unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from plugserve.backends.torch.weights.packed_layer import Group, Unpacker
from plugserve.core.contracts.weights import WeightSource
from plugserve.core.errors import ModelError
from plugserve.core.model_files.checkpoint_folder import quantisation_of

if TYPE_CHECKING:
    import torch

    Weights = Iterable[tuple[str, torch.Tensor]]

# tensors for quantised activations or caches only
_RUN_TIME_ONLY = frozenset(
    {"input_scale", "activation_scale", "input_zero_point", "output_scale", "q_scale", "k_scale", "v_scale"}
)


def dequantized(source: WeightSource, open_raw: Callable[[], Weights]) -> Weights:
    """open_raw's tensors with quantised layers put together; as they are where the config names no quantisation.

    Raises ModelError for a quantisation that isn't read, before open_raw is called.
    """
    config = quantisation_of(source.config)
    if config is None:
        return open_raw()
    from plugserve.backends.torch.weights.unpackers import make_unpacker

    return _put_together(open_raw(), make_unpacker(config))


def _put_together(weights: Weights, unpacker: Unpacker) -> Iterator[tuple[str, torch.Tensor]]:
    """Collect a layer's tensors until all of them have been read; they may be spread over two shards."""
    waiting: dict[str, Group] = {}
    for name, tensor in weights:
        layer, _, suffix = name.rpartition(".")
        if suffix in _RUN_TIME_ONLY:
            continue
        if suffix not in unpacker.suffixes or (suffix == "weight" and unpacker.is_plain(tensor)):
            yield name, tensor
            continue
        group = waiting.setdefault(layer, {})
        group[suffix] = tensor
        if group.keys() == unpacker.suffixes:
            yield f"{layer}.weight", unpacker.unpack(layer, waiting.pop(layer))
    for layer, group in waiting.items():
        if not group.keys() >= unpacker.required:
            missing = ", ".join(sorted(unpacker.required - group.keys()))
            raise ModelError(f"the quantised layer {layer} lacks {missing}")
        yield f"{layer}.weight", unpacker.unpack(layer, group)
