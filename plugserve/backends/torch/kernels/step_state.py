"""Kernels that move a step between host and device: scatter what changed, read a step's tokens from row state.

Their plain torch forms are in runner.device_state, which uses these on GPUs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def _scatter_kernel(segments_ptr, payload_ptr, words_ptr, BLOCK: tl.constexpr):
    """One program a segment (place, offset in the payload, length)."""
    segment = segments_ptr + tl.program_id(0) * 3
    place, source, length = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    for start in range(0, length, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < length
        values = tl.load(payload_ptr + source + offsets, mask)
        tl.store(words_ptr + place + offsets, values, mask)


def scatter(words: torch.Tensor, segments: torch.Tensor, payload: torch.Tensor) -> None:
    """words[place : place + length] = payload[source : source + length] for each (place, source, length) of segments
    [N, 3] int64; words and payload are int32."""
    _scatter_kernel[(segments.shape[0],)](segments, payload, words, BLOCK=_BLOCK, num_warps=4)


@triton.jit
def _read_kernel(
    rows_ptr, starts_ptr, offsets_ptr, tokens_ptr, computed_ptr, table_ptr,
    token_ids_ptr, token_rows_ptr, positions_ptr, slots_ptr, lengths_ptr, blocks_ptr,
    tokens_stride, computed_stride, num_blocks, HAS_OFFSETS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (b, chunk) reads up to BLOCK tokens of entry b; chunk 0 copies the row's block table, too."""
    b = tl.program_id(0)
    chunk = tl.program_id(1)
    row = tl.load(rows_ptr + b).to(tl.int64)
    start = tl.load(starts_ptr + b)
    count = tl.load(starts_ptr + b + 1) - start
    computed = tl.load(computed_ptr + row * computed_stride)
    if HAS_OFFSETS:
        computed += tl.load(offsets_ptr + b)
    lane = tl.arange(0, BLOCK)
    if chunk == 0:
        tl.store(lengths_ptr + b, (computed + count).to(tl.int32))
        for first in range(0, num_blocks, BLOCK):
            at = first + lane
            blocks = tl.load(table_ptr + row * num_blocks + at, at < num_blocks)
            tl.store(blocks_ptr + b.to(tl.int64) * num_blocks + at, blocks, at < num_blocks)
    offsets = chunk * BLOCK + lane
    mask = offsets < count
    positions = computed + offsets
    tokens = tl.load(tokens_ptr + row * tokens_stride + positions, mask)
    blocks = tl.load(table_ptr + row * num_blocks + positions // BLOCK_SIZE, mask, other=0).to(tl.int64)
    place = start + offsets
    tl.store(token_ids_ptr + place, tokens, mask)
    tl.store(token_rows_ptr + place, row, mask)
    tl.store(positions_ptr + place, positions, mask)
    tl.store(slots_ptr + place, blocks * BLOCK_SIZE + positions % BLOCK_SIZE, mask)


def read_step(
    rows: torch.Tensor,
    query_starts: torch.Tensor,
    offsets: torch.Tensor | None,
    most_tokens: int,
    tokens: torch.Tensor,
    num_computed: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    outs: tuple[torch.Tensor, ...],
) -> None:
    """Fill outs (token_ids, token_rows, positions, slots [T], lengths [B], blocks [B, max_blocks]) for device rows [B]
    that compute at most most_tokens tokens each, from num_computed + offsets [B] on."""
    grid = (rows.shape[0], triton.cdiv(most_tokens, _BLOCK))
    _read_kernel[grid](
        rows, query_starts, rows if offsets is None else offsets, tokens, num_computed, block_table, *outs,
        tokens.stride(0), num_computed.stride(0), block_table.shape[1],
        HAS_OFFSETS=offsets is not None, BLOCK_SIZE=block_size, BLOCK=32 if most_tokens == 1 else _BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _advance_kernel(
    rows_ptr, lengths_ptr, drawn_ptr, tokens_ptr, computed_ptr, num_rows, padding_row, tokens_stride, computed_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + lane, lane < num_rows, other=padding_row).to(tl.int64)
    mask = row != padding_row
    length = tl.load(lengths_ptr + lane, mask, other=0).to(tl.int64)
    drawn = tl.load(drawn_ptr + lane, mask, other=0)
    tl.store(tokens_ptr + row * tokens_stride + length, tl.maximum(drawn, 0), mask)
    tl.store(computed_ptr + row * computed_stride, length, mask)


def advance_rows(
    rows: torch.Tensor,
    lengths: torch.Tensor,
    drawn: torch.Tensor,
    tokens: torch.Tensor,
    num_computed: torch.Tensor,
    padding_row: int,
) -> None:
    """Store lengths [B] as the numbers of computed tokens of rows [B], and write drawn [B] after them. Row padding_row
    is not changed."""
    num_rows = rows.shape[0]
    _advance_kernel[(triton.cdiv(num_rows, 256),)](
        rows, lengths, drawn, tokens, num_computed, num_rows, padding_row, tokens.stride(0), num_computed.stride(0),
        BLOCK=256, num_warps=4,
    )  # fmt: skip
