"""LoRA over grouped Triton kernels: the manager for GPUs.

Every slot's weights lie in buffers of max_rank (rounded up), allocated once, so that memory doesn't depend on what is
loaded; what an adapter lacks is zero. peft_adapter.py reads the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plugserve.core.contracts.lora import LoraSite, LoraSpec
from plugserve.plugins.lora.peft_adapter import AdapterReader, LoraWeights

if TYPE_CHECKING:
    import torch

_FEW_TOKENS, _MANY_TOKENS = 16, 64  # of a tile


@dataclass(slots=True)
class _SiteBuffers:
    """a [layers, slots, slices, rank, inputs]; b [layers, slots, outputs, rank]; blocks as kernels.output_blocks."""

    site: LoraSite
    a: torch.Tensor
    b: torch.Tensor
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Step:
    """Tokens sorted by slot, tiles of one slot each (see kernels.shrink), and the sites that some adapter changes."""

    order: torch.Tensor
    tiles: torch.Tensor
    block_m: int
    sites: frozenset[str]


class BatchedLora:
    """LoraManager over kernels.shrink and kernels.expand."""

    graph_safe = False  # a step's tiles are made on the host

    def __init__(self, spec: LoraSpec) -> None:
        import torch

        from plugserve.plugins.lora import lora_kernels as kernels

        self._torch, self._kernels = torch, kernels
        self._device = torch.device(spec.device)
        self._reader = AdapterReader(spec)
        self._first_layer = spec.own_layers.start
        self._sites_of: list[frozenset[str]] = [frozenset()] * spec.max_loras
        rank = max(16, 1 << (spec.max_rank - 1).bit_length())
        self._buffers = {site.name: self._allocate(site, spec, rank) for site in spec.sites}

    def _allocate(self, site: LoraSite, spec: LoraSpec, rank: int) -> _SiteBuffers:
        torch = self._torch
        dtype = getattr(torch, spec.dtype)
        slots = (len(spec.own_layers), spec.max_loras)
        return _SiteBuffers(
            site,
            torch.zeros((*slots, len(site.slices), rank, site.input_size), dtype=dtype, device=self._device),
            torch.zeros((*slots, site.output_size, rank), dtype=dtype, device=self._device),
            self._kernels.output_blocks([part.size for part in site.slices], self._device),
        )

    @property
    def size_bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size() for site in self._buffers.values() for tensor in (site.a, site.b)
        )

    def read(self, path: Path) -> LoraWeights:
        return self._reader.read(path)

    def load(self, slot: int, adapter: LoraWeights) -> None:
        self.unload(slot)
        self._sites_of[slot] = frozenset(site for site, _ in adapter.parts)
        for (name, layer), parts in adapter.parts.items():
            buffers, index = self._buffers[name], layer - self._first_layer
            for part in parts:
                rank, end = len(part.a), part.start + part.b.shape[1]
                a, b = part.a.to(self._device), part.b.T.to(self._device)
                for s, piece in enumerate(buffers.site.slices):  # a fused module has one A for several slices
                    if part.start <= piece.start < end:
                        buffers.a[index, slot, s, :rank] = a
                buffers.b[index, slot, part.start : end, :rank] = b

    def unload(self, slot: int) -> None:
        for name in self._sites_of[slot]:
            self._buffers[name].a[:, slot] = 0
            self._buffers[name].b[:, slot] = 0
        self._sites_of[slot] = frozenset()

    def plan(self, slots: Sequence[int], num_tokens: Sequence[int]) -> _Step:
        spans: dict[int, list[range]] = {}
        start = 0
        for slot, count in zip(slots, num_tokens, strict=True):
            if slot >= 0:
                spans.setdefault(slot, []).append(range(start, start + count))
            start += count
        order: list[int] = []
        tiles: list[tuple[int, int, int]] = []
        longest = max(sum(map(len, own)) for own in spans.values())
        block_m = _FEW_TOKENS if longest <= _FEW_TOKENS else _MANY_TOKENS
        for slot, own in spans.items():
            first = len(order)
            for span in own:
                order.extend(span)
            tiles += [(slot, at, min(block_m, len(order) - at)) for at in range(first, len(order), block_m)]
        words = self._upload([word for tile in tiles for word in tile] + order)
        sites = frozenset().union(*(self._sites_of[slot] for slot in spans))
        return _Step(words[3 * len(tiles) :], words[: 3 * len(tiles)].view(-1, 3), block_m, sites)

    def _upload(self, words: list[int]) -> torch.Tensor:
        on_host = self._torch.tensor(words, dtype=self._torch.int32)
        if self._device.type == "cuda":
            return on_host.pin_memory().to(self._device, non_blocking=True)
        return on_host

    def apply(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor, step: _Step) -> None:
        if site not in step.sites:
            return
        buffers, index = self._buffers[site], layer - self._first_layer
        shrunk = self._kernels.shrink(x, buffers.a[index], step.order, step.tiles, step.block_m)
        self._kernels.expand(shrunk, buffers.b[index], y, step.order, step.tiles, buffers.blocks, step.block_m)
