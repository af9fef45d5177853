"""A quantised layer as a checkpoint packs it: a group of tensors, and the interface of what unpacks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Group = dict[str, "torch.Tensor"]
"""A layer's tensors by suffix."""


class Unpacker(Protocol):
    """One method. A quantised layer's tensors are called after the layer's name by suffixes; it can be unpacked with
    the required ones, and nothing is missing with all of them."""

    suffixes: frozenset[str]
    required: frozenset[str]

    def is_plain(self, tensor: torch.Tensor) -> bool:
        """A tensor called "weight" is not quantised."""

    def unpack(self, layer: str, group: Group) -> torch.Tensor:
        """The float32 weight [out, in] of a group of tensors by suffix. Raises ModelError."""
