"""LoRA over plain torch: rows are grouped by adapter, and each group takes one pair of matrix products a module.

The default on a CPU, where a slot is a reference to the adapter's weights and no memory of its own, and the reference
beside the kernels on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plugserve.core.contracts.lora import LoraSpec
from plugserve.plugins.lora.peft_adapter import AdapterReader, LoraWeights, Part

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Group:
    """The step's tokens of one adapter: [start, end), or index [n] where they don't lie together (start is -1)."""

    weights: LoraWeights
    start: int
    end: int
    index: torch.Tensor | None


class GatheredLora:
    """LoraManager for any device that torch knows."""

    graph_safe = False

    def __init__(self, spec: LoraSpec) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(spec.device)
        self._reader = AdapterReader(spec)
        self._slots: list[LoraWeights | None] = [None] * spec.max_loras

    def read(self, path: Path) -> LoraWeights:
        return self._reader.read(path)

    def load(self, slot: int, adapter: LoraWeights) -> None:
        if self._device.type != "cpu":
            adapter = LoraWeights(
                {
                    key: tuple(Part(part.start, part.a.to(self._device), part.b.to(self._device)) for part in parts)
                    for key, parts in adapter.parts.items()
                }
            )
        self._slots[slot] = adapter

    def unload(self, slot: int) -> None:
        self._slots[slot] = None

    @property
    def size_bytes(self) -> int:
        return sum(adapter.size_bytes for adapter in self._slots if adapter is not None)

    def plan(self, slots: Sequence[int], num_tokens: Sequence[int]) -> list[_Group]:
        spans: dict[int, list[tuple[int, int]]] = {}
        start = 0
        for slot, count in zip(slots, num_tokens, strict=True):
            if slot >= 0:
                own = spans.setdefault(slot, [])
                if own and own[-1][1] == start:
                    own[-1] = (own[-1][0], start + count)
                else:
                    own.append((start, start + count))
            start += count
        return [self._group(slot, own) for slot, own in spans.items()]

    def _group(self, slot: int, spans: list[tuple[int, int]]) -> _Group:
        weights = self._slots[slot]
        if weights is None:
            raise LookupError(f"LoRA slot {slot} is empty")
        if len(spans) == 1:
            return _Group(weights, *spans[0], None)
        tokens = [token for start, end in spans for token in range(start, end)]
        return _Group(weights, -1, -1, self._torch.tensor(tokens, device=self._device))

    def apply(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor, step: list[_Group]) -> None:
        for group in step:
            parts = group.weights.parts.get((site, layer))
            if parts is None:
                continue
            if group.index is None:
                own_x, own_y = x[group.start : group.end], y[group.start : group.end]
                for part in parts:
                    outputs = own_y[:, part.start : part.start + part.b.shape[1]]
                    outputs.addmm_(own_x @ part.a.T, part.b)
            else:
                own_x = x.index_select(0, group.index)
                for part in parts:
                    outputs = y[:, part.start : part.start + part.b.shape[1]]
                    outputs.index_add_(0, group.index, own_x @ part.a.T @ part.b)
