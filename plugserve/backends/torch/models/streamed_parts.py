"""Weights that stay in host memory (--cpu-offload-gb): the chosen parts of a decoder's layers are copied to the device
right before they run, into two buffers by turns.

While a part computes out of one buffer, the next chosen part is copied into the other. A copy is started when the
buffer's last user is queued, and awaited right before the part that it is for, so that copies overlap with everything
between. Each forward pass starts and awaits its own copies: passes don't depend on each other, and a captured pass
holds its copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from plugserve.backends.torch.models.parts import Fused, LayerPart, Place
from plugserve.backends.torch.models.rope import Angles
from plugserve.core.contracts.model import ModelStep

_ALIGNMENT = 256  # bytes, as the device's allocator aligns: the same kernels are chosen as for resident weights
NUM_BUFFERS = 2


class Link(Protocol):
    """The way from host memory to the device, with NUM_BUFFERS buffers at its end."""

    def host_memory(self, num_bytes: int) -> list[torch.Tensor]:
        """Pieces of host memory (uint8) with num_bytes bytes altogether, which start can copy from."""

    def device_memory(self, num_bytes: int) -> torch.Tensor:
        """A buffer (uint8)."""

    def start(self, number: int, pieces: Sequence[torch.Tensor], buffer: torch.Tensor) -> None:
        """Copy pieces to the beginning of buffer, which is the one of this number, once all that is queued so far has
        been computed. Doesn't wait for the copy."""

    def wait(self, number: int) -> None:
        """What is queued from now on is computed after the last copy into the buffer of this number."""

    def synchronize(self) -> None:
        """Wait on the host for all copies."""


@dataclass(frozen=True, slots=True)
class OffloadedWeights:
    """The result of stream_parts. The layers copy num_bytes of num_parts parts in each forward pass."""

    num_bytes: int
    num_parts: int
    buffer_bytes: int
    stream: WeightStream


class WeightStream:
    """The copies of one forward pass. pieces are those of each chosen part, in the order in which parts run."""

    def __init__(self, link: Link, pieces: list[list[torch.Tensor]], buffers: list[torch.Tensor]) -> None:
        self._link = link
        self.pieces = pieces
        self.buffers = buffers

    def begin(self) -> None:
        """A forward pass begins."""
        for number in range(min(NUM_BUFFERS, len(self.pieces))):
            self._start(number)

    def wait(self, number: int) -> None:
        """The part of this number computes next."""
        self._link.wait(number % NUM_BUFFERS)

    def release(self, number: int) -> None:
        """The part of this number is queued: its buffer may be filled with what comes next."""
        if number + NUM_BUFFERS < len(self.pieces):
            self._start(number + NUM_BUFFERS)

    def _start(self, number: int) -> None:
        buffer = number % NUM_BUFFERS
        self._link.start(buffer, self.pieces[number], self.buffers[buffer])


class _WrappedPart:
    """A LayerPart around another, whose weights are part's."""

    def __init__(self, part: LayerPart, stream: WeightStream) -> None:
        self._part = part
        self._stream = stream

    def places(self) -> Mapping[str, Place]:
        return self._part.places()

    def fused(self) -> Mapping[str, Fused]:
        return self._part.fused()


class BeginningPart(_WrappedPart):
    """The part that a forward pass runs first."""

    def forward(self, x: torch.Tensor, angles: list[Angles], step: ModelStep) -> torch.Tensor:
        self._stream.begin()
        return self._part.forward(x, angles, step)


class StreamedPart(_WrappedPart):
    """The chosen part of this number: its weights are views of a buffer."""

    def __init__(self, part: LayerPart, stream: WeightStream, number: int) -> None:
        super().__init__(part, stream)
        self._number = number

    def forward(self, x: torch.Tensor, angles: list[Angles], step: ModelStep) -> torch.Tensor:
        self._stream.wait(self._number)
        added = self._part.forward(x, angles, step)
        self._stream.release(self._number)
        return added


def spread(sizes: Sequence[int], num_bytes: int) -> frozenset[int]:
    """Indices of parts with at least num_bytes bytes altogether, if there are so many: evenly distributed, so that
    every copy overlaps with as much computation as possible, and no earlier than their share demands, so that the first
    one does, too."""
    total = sum(sizes)
    chosen: set[int] = set()
    passed = taken = 0
    skipped: int | None = None
    for i, size in enumerate(sizes):
        passed += size
        if (taken + size) * total <= num_bytes * passed:
            chosen.add(i)
            taken += size
        else:
            skipped = i
    if taken < num_bytes and skipped is not None:  # less than the last one skipped is missing
        chosen.add(skipped)
    return frozenset(chosen)


def part_bytes(part: LayerPart) -> int:
    """Bytes of a part's weights as stream_parts lays them out."""
    return sum(_padded(tensor) for tensor in _weights(part).values())


def stream_parts(parts: Sequence[LayerPart], link: Link) -> tuple[list[LayerPart], OffloadedWeights]:
    """Move the weights of parts, which run in this order, to link's host memory; returns the parts to run instead."""
    sizes = [part_bytes(part) for part in parts]
    buffers = [link.device_memory(max(sizes)) for _ in range(min(NUM_BUFFERS, len(parts)))]
    pieces = []
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        pieces.append(_move(part, size, link, buffers[number % NUM_BUFFERS]))
    stream = WeightStream(link, pieces, buffers)
    streamed: list[LayerPart] = [StreamedPart(part, stream, number) for number, part in enumerate(parts)]
    return streamed, OffloadedWeights(sum(sizes), len(parts), len(buffers) * max(sizes), stream)


def _move(part: LayerPart, num_bytes: int, link: Link, buffer: torch.Tensor) -> list[torch.Tensor]:
    """Copy a part's weights into host memory, one behind the other, and let its attributes be views of buffer."""
    packed, start = torch.zeros(num_bytes, dtype=torch.uint8), 0
    for name, tensor in _weights(part).items():
        end = start + tensor.numel() * tensor.element_size()
        packed[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        setattr(part, name, buffer[start:end].view(tensor.dtype).view(tensor.shape))
        start += _padded(tensor)
    pieces, start = link.host_memory(num_bytes), 0
    for piece in pieces:
        piece.copy_(packed[start : start + len(piece)])
        start += len(piece)
    return pieces


def _weights(part: LayerPart) -> dict[str, torch.Tensor]:
    """A part's attributes that are tensors. Raises AssertionError if some of its places lies elsewhere."""
    weights = {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
    held = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    for name, place in part.places().items():
        assert place.tensor.untyped_storage()._cdata in held, f"{name} is no attribute of {type(part).__name__}"
    return weights


def _padded(tensor: torch.Tensor) -> int:
    return math.ceil(tensor.numel() * tensor.element_size() / _ALIGNMENT) * _ALIGNMENT
