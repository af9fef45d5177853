"""Counts tensors as they are read, for the progress that clients see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def counted(
    tensors: Iterable[tuple[str, torch.Tensor]],
    shapes: Callable[[], Mapping[str, Sequence[int]]],
    note_progress: Callable[[float], None],
) -> Iterator[tuple[str, torch.Tensor]]:
    """tensors as they come; note_progress gets the share of the model's numbers that were read. shapes are those of all
    tensors that the model asks for."""
    num_all = max(1, sum(math.prod(shape) for shape in shapes().values()))
    num_read = 0
    for name, tensor in tensors:
        yield name, tensor
        num_read += tensor.numel()
        note_progress(min(1.0, num_read / num_all))
