"""Copies of KV blocks between the device and host memory, for StepInput.copy_out and copy_in.

Host memory is taken in chunks of some slots when their first slot is used. A slot
holds its block of all layers in one piece. All copies run on the current stream, in the order of the steps: what a step
computes can't overwrite a block before it is copied out, nor read one before it is copied in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch

from plugserve.backends.torch.runner.transfers import to_device

_CHUNK_BYTES = 64 << 20
_MOST_STAGED = 64  # blocks gathered on a GPU at a time


class HostCopies:
    """Host slots for the blocks of kv, one tensor a layer whose axis block_axis counts blocks."""

    def __init__(self, kv: Sequence[torch.Tensor], block_axis: int) -> None:
        self._layers = [layer.movedim(block_axis, 0) for layer in kv]
        first = self._layers[0]
        self._device = first.device
        self._slot_shape = (len(kv), *first.shape[1:])
        slot_bytes = len(kv) * first[0].numel() * first.element_size()
        self._slots_per_chunk = max(1, _CHUNK_BYTES // slot_bytes)
        self._chunks: dict[int, torch.Tensor] = {}

    def run(self, copy_out: Sequence[tuple[int, int]], copy_in: Sequence[tuple[int, int]]) -> None:
        """First out: (block, slot) pairs; then in: (slot, block) pairs. A slot or block that is written twice ends up
        with the later one."""
        for number, pairs in groupby(copy_out, key=lambda pair: pair[1] // self._slots_per_chunk):
            self._copy_out(self._chunk(number), {slot % self._slots_per_chunk: block for block, slot in pairs})
        for number, pairs in groupby(copy_in, key=lambda pair: pair[0] // self._slots_per_chunk):
            self._copy_in(self._chunk(number), {block: slot % self._slots_per_chunk for slot, block in pairs})

    def _chunk(self, number: int) -> torch.Tensor:
        """[slots, layers, *block]."""
        chunk = self._chunks.get(number)
        if chunk is None:
            shape = (self._slots_per_chunk, *self._slot_shape)
            chunk = self._chunks[number] = self._empty_chunk(shape)
        return chunk

    def _empty_chunk(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=self._layers[0].dtype)

    def _copy_out(self, chunk: torch.Tensor, block_of: dict[int, int]) -> None:
        slots, blocks = torch.tensor(list(block_of)), torch.tensor(list(block_of.values()))
        for number, layer in enumerate(self._layers):
            chunk[:, number].index_copy_(0, slots, layer.index_select(0, blocks))

    def _copy_in(self, chunk: torch.Tensor, slot_of: dict[int, int]) -> None:
        blocks, slots = torch.tensor(list(slot_of)), torch.tensor(list(slot_of.values()))
        for number, layer in enumerate(self._layers):
            layer.index_copy_(0, blocks, chunk[:, number].index_select(0, slots))


class PinnedHostCopies(HostCopies):
    """Copies for a GPU: through page-locked memory, without waiting for the device; blocks that lie side by side there
    travel together."""

    def _empty_chunk(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=self._layers[0].dtype, pin_memory=True)

    def _copy_out(self, chunk: torch.Tensor, block_of: dict[int, int]) -> None:
        pairs = sorted(block_of.items())
        for start in range(0, len(pairs), _MOST_STAGED):
            slots, numbers = zip(*pairs[start : start + _MOST_STAGED], strict=True)
            blocks = to_device(np.array(numbers), self._device)
            staged = torch.stack([layer.index_select(0, blocks) for layer in self._layers], dim=1)
            for here, there in _runs(slots):
                chunk[there].copy_(staged[here], non_blocking=True)

    def _copy_in(self, chunk: torch.Tensor, slot_of: dict[int, int]) -> None:
        pairs = sorted((slot, block) for block, slot in slot_of.items())
        for start in range(0, len(pairs), _MOST_STAGED):
            slots, numbers = zip(*pairs[start : start + _MOST_STAGED], strict=True)
            blocks = to_device(np.array(numbers), self._device)
            staged = torch.empty((len(slots), *self._slot_shape), dtype=chunk.dtype, device=self._device)
            for here, there in _runs(slots):
                staged[here].copy_(chunk[there], non_blocking=True)
            for number, layer in enumerate(self._layers):
                layer.index_copy_(0, blocks, staged[:, number])


def _runs(slots: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Ascending slots cut where one doesn't follow the one before: (indices, slots) of each run."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield slice(start, end), slice(slots[start], slots[end - 1] + 1)
            start = end
