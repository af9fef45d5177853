"""Maps a checkpoint's tensors to a decoder's: renames them, splits fused ones, skips redundant ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from plugserve.backends.torch.models.parts import Fused
from plugserve.backends.torch.models.rope import Rope
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ModelError
from plugserve.core.model_files.fill_parameters import check_shape

ROPE_FREQUENCY_DIVISORS = "rope_freqs.weight"
"""GGUF's form of Llama 3's RoPE scaling: a tensor that is not a parameter."""


def own_tensors(
    weights: Iterable[tuple[str, torch.Tensor]],
    spec: DecoderSpec,
    places: Mapping[str, torch.Tensor],
    fused: Mapping[str, Fused],
    ropes: list[Rope],
) -> Iterator[tuple[str, torch.Tensor]]:
    """weights by the names of places, each once. RoPE divisors go to ropes. Raises ModelError for a tensor without a
    place."""
    left = set(places)
    for given_name, tensor in weights:
        name = _own_name(given_name, spec)
        if name == ROPE_FREQUENCY_DIVISORS:
            for rope in ropes:
                rope.divide(tensor)
        elif name in left:
            left.remove(name)
            check_shape(given_name, tensor, places[name])
            yield name, tensor
        elif name in fused and left >= fused[name].parts.keys():
            left -= fused[name].parts.keys()
            check_shape(given_name, tensor, fused[name].tensor)
            sizes = [len(part) for part in fused[name].parts.values()]
            yield from zip(fused[name].parts, torch.split(tensor, sizes), strict=True)
        elif not _is_redundant(name, given_name, spec):
            raise ModelError(f"tensor {given_name} has no place in {spec.architecture}")


def _own_name(name: str, spec: DecoderSpec) -> str:
    for checkpoint_prefix, own_prefix in spec.weight_prefixes:
        if name.startswith(checkpoint_prefix):
            return own_prefix + name.removeprefix(checkpoint_prefix)
    return name


def _is_redundant(name: str, given_name: str, spec: DecoderSpec) -> bool:
    is_tied_head = spec.ties_embeddings and name == "lm_head.weight"
    return is_tied_head or name.endswith("rotary_emb.inv_freq") or given_name.startswith(spec.ignored_weights)
