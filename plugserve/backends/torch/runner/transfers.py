"""Copies of small arrays from the host to the device that do not wait for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """array on device; on a GPU copied from page-locked memory in the stream's order, so that the host goes on."""
    if device.type != "cuda":
        return torch.from_numpy(array)
    staged = torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype, pin_memory=True)
    staged.numpy()[...] = array
    return staged.to(device, non_blocking=True)  # torch keeps the memory until the copy is done


class ScatterWrites:
    """Writes into one int32 tensor, gathered on the host and carried out together."""

    def __init__(self, words: torch.Tensor) -> None:
        self._words = words
        self._segments: list[tuple[int, int, int]] = []
        self._parts: list[np.ndarray[Any, Any]] = []
        self._size = 0

    def add(self, place: int, values: np.ndarray[Any, Any]) -> None:
        """values (of any 4- or 8-byte type) go to words from place on."""
        values = np.ascontiguousarray(values).view(np.int32)
        if values.size:
            self._segments.append((place, self._size, values.size))
            self._parts.append(values)
            self._size += values.size

    def flush(self) -> None:
        """Carry out what was added. Writes of one flush must not overlap."""
        if not self._segments:
            return
        if self._words.device.type == "cuda":
            from plugserve.backends.torch.kernels.step_state import scatter

            segments = to_device(np.array(self._segments, dtype=np.int64), self._words.device)
            scatter(self._words, segments, to_device(np.concatenate(self._parts), self._words.device))
        else:
            words = self._words.numpy()
            for (place, _, length), values in zip(self._segments, self._parts, strict=True):
                words[place : place + length] = values
        self._segments, self._parts, self._size = [], [], 0
