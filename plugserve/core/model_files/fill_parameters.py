"""Fills a model's tensors from a checkpoint, and reports what is missing, misshapen or left over. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from plugserve.core.errors import ModelError

if TYPE_CHECKING:
    import torch


def fill_parameters(
    places: Mapping[str, torch.Tensor], weights: Iterable[tuple[str, torch.Tensor]], architecture: str
) -> None:
    """Copy each tensor of weights, (name, tensor) pairs, into the place of its name.

    Raises ModelError for a tensor that has no place (it would silently be left out of the model), that has another
    shape than its place, and for places that are left empty.
    """
    left = dict(places)
    for name, tensor in weights:
        place = left.pop(name, None)
        if place is None:
            raise ModelError(f"tensor {name} has no place in {architecture}")
        check_shape(name, tensor, place)
        place.copy_(tensor)
    if left:
        raise ModelError(f"the checkpoint lacks {len(left)} tensors, first {min(left)}")


def check_shape(name: str, tensor: torch.Tensor, place: torch.Tensor) -> None:
    """Raise ModelError unless tensor has the shape of its place."""
    if place.shape != tensor.shape:
        raise ModelError(
            f"tensor {name} has shape {list(tensor.shape)}, the model's config asks for {list(place.shape)}"
        )
