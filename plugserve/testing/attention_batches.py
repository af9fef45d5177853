"""Paged sequences for attention backends under test: random keys and values, random blocks, and the expected output.

Independent of backends and layouts: steps write a sequence's history into the cache, as in the engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from plugserve.core.contracts.attention import AttentionBatch, AttentionSpec

Visibility = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, positions of queries [n, 1], positions of keys [1, m]) -> bool [n, m]: which keys a query sees."""


def attention_batch(
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    slots: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
) -> AttentionBatch:
    """A step's batch, in the format of the runner's batches. All of the kit's batches are built here."""
    numbers: dict[str, Any] = {"dtype": torch.int32, "device": slots.device}
    return AttentionBatch(
        list(query_lens),
        list(context_lens),
        slots,
        block_table,
        block_size,
        query_starts=torch.tensor([0, *accumulate(query_lens)], **numbers),
        context_lengths=torch.tensor(context_lens, **numbers),
    )


@dataclass(slots=True)
class PagedStep:
    """One step: its batch, and by layer q [T, H, D] and k, v [T, KVH, D]."""

    batch: AttentionBatch
    rows: list[tuple[int, int]]
    q: list[torch.Tensor]
    k: list[torch.Tensor]
    v: list[torch.Tensor]


@dataclass(slots=True)
class _Sequence:
    blocks: list[int] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)  # by layer [context, KVH, D]
    values: list[torch.Tensor] = field(default_factory=list)


class PagedSequences:
    """count sequences over num_blocks blocks in random order. The last block is reserved for padding tokens."""

    def __init__(
        self, spec: AttentionSpec, count: int, *, block_size: int = 16, num_blocks: int = 64, seed: int = 0
    ) -> None:
        self.spec = spec
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._dtype = getattr(torch, spec.dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self._free = list(range(num_blocks - 1))
        random.Random(seed).shuffle(self._free)
        empty = torch.empty(0, spec.num_kv_heads, spec.head_dim, dtype=self._dtype)
        self._sequences = [
            _Sequence(keys=[empty] * spec.num_layers, values=[empty] * spec.num_layers) for _ in range(count)
        ]

    def step(self, rows: Sequence[tuple[int, int]]) -> PagedStep:
        """The next step: rows are (sequence, number of new tokens), in batch order. A sequence of -1 is padding: its
        tokens have no context, and their slot is never read."""
        slots: list[int] = []
        context_lens = []
        drawn = [self._draw(sum(count for _, count in rows)) for _ in range(self.spec.num_layers)]
        start = 0
        for index, count in rows:
            if index < 0:
                slots += [(self.num_blocks - 1) * self.block_size] * count
                context_lens.append(0)
            else:
                slots += self._extend(index, count, drawn, start)
                context_lens.append(len(self._sequences[index].keys[0]))
            start += count
        batch = attention_batch(
            [count for _, count in rows],
            context_lens,
            torch.tensor(slots, dtype=torch.int64, device=self.spec.device),
            self._table([index for index, _ in rows]),
            self.block_size,
        )
        q, k, v = ([layer[part].to(self.spec.device) for layer in drawn] for part in range(3))
        return PagedStep(batch, list(rows), q, k, v)

    def _draw(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v as parts of one tensor, as from a fused projection."""
        spec = self.spec
        heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        fused = torch.randn(num_tokens, sum(heads), spec.head_dim, generator=self._generator).to(self._dtype)
        q, k, v = torch.split(fused, heads, dim=1)
        return q, k, v

    def _extend(
        self, index: int, count: int, drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], start: int
    ) -> list[int]:
        """Add tokens to a sequence; returns their slots."""
        sequence = self._sequences[index]
        old = len(sequence.keys[0])
        while len(sequence.blocks) * self.block_size < old + count:
            sequence.blocks.append(self._free.pop())
        sequence.keys = [
            torch.cat([kept, k[start : start + count]]) for kept, (_, k, _) in zip(sequence.keys, drawn, strict=True)
        ]
        sequence.values = [
            torch.cat([kept, v[start : start + count]]) for kept, (_, _, v) in zip(sequence.values, drawn, strict=True)
        ]
        return [
            sequence.blocks[position // self.block_size] * self.block_size + position % self.block_size
            for position in range(old, old + count)
        ]

    def _table(self, indices: list[int]) -> torch.Tensor:
        """[B, longest + 2]. Entries beyond a sequence's own blocks are other block numbers, as in a reused table."""
        longest = max((len(self._sequences[index].blocks) for index in indices if index >= 0), default=1)
        stale = [block for sequence in self._sequences for block in sequence.blocks] or [0]
        rows = []
        for index in indices:
            own = self._sequences[index].blocks if index >= 0 else []
            rows.append(own + [stale[n % len(stale)] for n in range(longest + 2 - len(own))])
        return torch.tensor(rows, dtype=torch.int32, device=self.spec.device)

    def expected(self, step: PagedStep, layer: int, is_visible: Visibility) -> torch.Tensor:
        """[T, H, D] in float64: reference attention. Only for the newest step; zeros for padding tokens."""
        spec = self.spec
        out = torch.zeros(len(step.q[layer]), spec.num_heads, spec.head_dim, dtype=torch.float64)
        start = 0
        for index, count in step.rows:
            if index >= 0 and count:
                sequence = self._sequences[index]
                queries = step.q[layer][start : start + count].cpu().double()
                out[start : start + count] = self._attend(
                    queries, sequence.keys[layer].double(), sequence.values[layer].double(), layer, is_visible
                )
            start += count
        return out

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, is_visible: Visibility
    ) -> torch.Tensor:
        """softmax(cap(q k scale) + mask) v; query head h reads key head h // group."""
        group = self.spec.num_heads // self.spec.num_kv_heads
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("nhd,mhd->hnm", q, k) * self.spec.scale
        if self.spec.soft_cap is not None:
            scores = self.spec.soft_cap * torch.tanh(scores / self.spec.soft_cap)
        queries = torch.arange(len(k) - len(q), len(k)).unsqueeze(1)
        visible = is_visible(layer, queries, torch.arange(len(k)).unsqueeze(0))
        return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)
