"""Attention to the last and the first tokens of a sequence (Xiao et al. 2023, "Efficient Streaming Language Models with
Attention Sinks"), one sequence after another over torch's scaled_dot_product_attention.

Only the blocks that a sequence's tokens attend to are gathered, so the cost of a step depends on the window, not on the
sequence's length. Layers with a window of their own keep it, and the sinks are added.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from plugserve import AttentionBatch, AttentionSpec, KVLayout
from plugserve_attention_sinks.options import SinkOptions


@dataclass(slots=True)
class _Row:
    """One sequence's tokens, [start, end) of the step. blocks: those they attend to; mask: [n, tokens in blocks]."""

    start: int
    end: int
    blocks: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class _Step:
    """One step's plan, shared by the layers: slots of new tokens, and sequences by window."""

    slots: torch.Tensor
    rows: dict[int, list[_Row]]


class SinkAttention:
    """A plugserve.AttentionBackend. graph_safe is False, so steps run eagerly."""

    graph_safe = False

    def __init__(self, block_size: int, options: SinkOptions) -> None:
        self._block_size = block_size
        self._options = options
        self._windows: tuple[int, ...] = ()
        self._scale = 1.0

    def refusal(self, spec: AttentionSpec) -> str | None:
        return "it has no soft caps" if spec.soft_cap is not None else None

    def kv_layout(self, spec: AttentionSpec) -> KVLayout:
        own = spec.windows or (None,) * spec.num_layers
        self._windows = tuple(min(window or self._options.window, self._options.window) for window in own)
        self._scale = spec.scale
        element_bytes = getattr(torch, spec.dtype).itemsize
        return KVLayout(
            shape=(2, "num_blocks", self._block_size, spec.num_kv_heads, spec.head_dim),
            bytes_per_block=2 * self._block_size * spec.num_kv_heads * spec.head_dim * element_bytes * spec.num_layers,
        )

    def prepare(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Nothing to allocate: steps run eagerly."""

    def plan(self, batch: AttentionBatch) -> _Step:
        rows: dict[int, list[_Row]] = {window: [] for window in self._windows}
        start = 0
        for b, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            if query_len and context_len:
                for window, planned in rows.items():
                    planned.append(self._plan_row(batch, b, start, window))
            start += query_len
        return _Step(batch.slots, rows)

    def _plan_row(self, batch: AttentionBatch, b: int, start: int, window: int) -> _Row:
        """Selects the blocks of the sinks, and those from the first new token's window on."""
        query_len, context_len = batch.query_lens[b], batch.context_lens[b]
        size, device, sinks = self._block_size, batch.slots.device, self._options.sinks
        first_query = context_len - query_len
        num_sink_blocks = -(-min(sinks, context_len) // size)
        first_block = max(num_sink_blocks, max(0, first_query - window + 1) // size)
        numbers = [*range(num_sink_blocks), *range(first_block, -(-context_len // size))]
        blocks = torch.tensor(numbers, device=device)
        keys = (blocks.unsqueeze(1) * size + torch.arange(size, device=device)).flatten()  # positions
        queries = torch.arange(first_query, context_len, device=device).unsqueeze(1)
        mask = (keys <= queries) & ((keys > queries - window) | (keys < sinks))
        return _Row(start, start + query_len, batch.block_table[b].index_select(0, blocks), mask)

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, step: _Step, layer: int
    ) -> torch.Tensor:
        by_slot = kv.flatten(1, 2)  # [2, num_slots, KVH, D]
        by_slot[0].index_copy_(0, step.slots, k)
        by_slot[1].index_copy_(0, step.slots, v)
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        for row in step.rows[self._windows[layer]]:
            keys, values = kv.index_select(1, row.blocks).flatten(1, 2).transpose(1, 2)  # [KVH, L, D] each
            attended = scaled_dot_product_attention(
                q[row.start : row.end].transpose(0, 1).unsqueeze(0),
                keys.unsqueeze(0),
                values.unsqueeze(0),
                attn_mask=row.mask,
                scale=self._scale,
                enable_gqa=True,
            )
            out[row.start : row.end] = attended[0].transpose(0, 1)
        return out
