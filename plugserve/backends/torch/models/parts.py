"""The parts of a decoder's layers. A part holds its weights and declares them by checkpoint name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from plugserve.backends.torch.models.collectives import Collectives
from plugserve.backends.torch.models.layers import LayerOperations
from plugserve.backends.torch.models.rope import Angles
from plugserve.core.contracts.model import DecoderSpec, ModelStep


@dataclass(frozen=True, slots=True)
class Place:
    """The (view of a) tensor that a checkpoint's tensor fills; shard_axis as in Parameter. part is which of the equal
    parts along that axis lies here, where that isn't the rank's number. is_first_ranks: other ranks hold zeros."""

    tensor: torch.Tensor
    shard_axis: int | None = None
    part: int | None = None
    is_first_ranks: bool = False


@dataclass(frozen=True, slots=True)
class Fused:
    """One tensor for several of the checkpoint's, by rows: a checkpoint may bring it whole, or its parts by name."""

    tensor: torch.Tensor
    parts: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PartContext:
    """The arguments of a part's constructor. spec describes this rank's share of a layer, which has the kv_part-th
    of the equal parts of the model's key heads."""

    spec: DecoderSpec
    dtype: torch.dtype
    norm_dtype: torch.dtype
    device: torch.device
    operations: LayerOperations
    collectives: Collectives
    kv_part: int = 0

    def empty(self, *shape: int) -> torch.Tensor:
        """Room for a weight."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def empty_norm(self, size: int) -> torch.Tensor:
        """Room for a norm's weight."""
        return torch.empty(size, dtype=self.norm_dtype, device=self.device)


class LayerPart(Protocol):
    """An attention block or an MLP: from normed hidden states to what is added to them."""

    def places(self) -> Mapping[str, Place]:
        """By the checkpoint's name within the layer."""

    def fused(self) -> Mapping[str, Fused]:
        """Fused tensors by the name that checkpoints which fuse them give the whole."""

    def forward(self, x: torch.Tensor, angles: list[Angles], step: ModelStep) -> torch.Tensor:
        """[T, H] of normed hidden states x [T, H], complete: summed over the ranks that share the part. angles are
        those of each of the model's ropes."""


def split_rows(prefixes: tuple[str, ...], kind: str, tensor: torch.Tensor, sizes: list[int]) -> Fused:
    """tensor cut by rows of sizes, under "prefix.kind" names."""
    names = [f"{prefix}.{kind}" for prefix in prefixes]
    return Fused(tensor, dict(zip(names, torch.split(tensor, sizes), strict=True)))
