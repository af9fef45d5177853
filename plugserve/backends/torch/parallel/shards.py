"""One rank's share of a decoder (Megatron-LM; Shoeybi et al. 2019): heads, MLP columns and vocabulary are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F

from plugserve.backends.torch.models.parts import Place
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ConfigError


def rank_spec(spec: DecoderSpec, num_ranks: int) -> DecoderSpec:
    """spec of each rank's layers. Key heads are repeated where there are fewer of them than ranks. Raises ConfigError
    for a number of ranks that doesn't divide the model."""
    if num_ranks == 1:
        return spec
    heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.intermediate_size
    if heads % num_ranks or size % num_ranks or (kv_heads % num_ranks and num_ranks % kv_heads):
        fitting = [n for n in range(1, heads + 1) if _divides(n, spec)]
        raise ConfigError(
            f"--tensor-parallel-size {num_ranks} does not divide this model's {heads} attention heads, {kv_heads} "
            f"key-value heads and MLP of {size}: use {' or '.join(map(str, fitting))}"
        )
    return replace(
        spec,
        num_heads=heads // num_ranks,
        num_kv_heads=max(1, kv_heads // num_ranks),
        intermediate_size=size // num_ranks,
    )


def _divides(n: int, spec: DecoderSpec) -> bool:
    kv_heads = spec.num_kv_heads
    return not (spec.num_heads % n or spec.intermediate_size % n or (kv_heads % n and n % kv_heads))


def kv_part(num_kv_heads: int, rank: int, num_ranks: int) -> int:
    """Which of the equal parts of the key heads rank holds: with more ranks than key heads several hold the same."""
    return rank if num_kv_heads >= num_ranks else rank * num_kv_heads // num_ranks


def shards(
    weights: Iterable[tuple[str, torch.Tensor]], places: Mapping[str, Place], rank: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The part of each whole tensor that its place on this rank holds; zeros beyond the whole's end."""
    for name, whole in weights:
        place = places[name]
        if place.shard_axis is None:
            yield name, whole.new_zeros(whole.shape) if place.is_first_ranks and rank else whole
            continue
        axis, part = place.shard_axis, rank if place.part is None else place.part
        size, length = place.tensor.shape[axis], whole.shape[axis]
        start = min(part * size, length)
        cut = whole.narrow(axis, start, min(size, length - start))
        missing = size - cut.shape[axis]
        yield name, F.pad(cut, (0, 0) * (whole.dim() - 1 - axis) + (0, missing)) if missing else cut
