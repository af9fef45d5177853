"""Compares any backend's paged attention with float64; uses only the contract, not the backend's layout."""

from __future__ import annotations

import torch

from plugserve.core.contracts.attention import AttentionBatch, AttentionSpec
from plugserve.core.contracts.factories import AttentionContext
from plugserve.plugins.attention.triton_paged import TritonPagedAttention
from plugserve.testing.contexts import attention_context


def make_triton(context: AttentionContext) -> TritonPagedAttention:
    """Triton's backend on a GPU, or in its interpreter where there is none."""
    return TritonPagedAttention(context.block_size, is_interpreted=not torch.cuda.is_available())


BATCHES = {
    "decode, one row": [(1, 1)],
    "decode, ragged": [(1, 1), (1, 15), (1, 16), (1, 17), (1, 33), (1, 100)],
    "decode, equal": [(1, 20), (1, 20)],
    "fresh prompts": [(5, 5), (16, 16), (17, 17)],
    "chunks with history": [(5, 21), (16, 32), (2, 40)],
    "drafts, ragged": [(6, 21), (6, 40), (3, 33), (6, 100), (3, 4), (1, 20)],
    "drafts, equal": [(4, 20), (4, 20)],
    "mixed": [(1, 50), (7, 7), (1, 16), (9, 60), (1, 17)],
    "mixed, one row empty": [(1, 50), (0, 18), (7, 9), (1, 16)],
}
"""Batches of rows (new tokens, context after the step)."""


def reference(q, k_all, v_all, query_len, context_len, scale, window, soft_cap):
    """[n, H, D] in float64 for one sequence; k_all, v_all [context, KVH, D]."""
    group = q.shape[1] // k_all.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k_all, v_all))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    last = torch.arange(context_len - query_len, context_len, device=q.device).unsqueeze(1)
    keys = torch.arange(context_len, device=q.device)
    visible = keys <= last
    if window:
        visible &= keys > last - window
    scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


def make_batch(rows, table, block_size):
    """AttentionBatch of rows [(new tokens, context)] whose blocks stand in table [B, max_blocks]."""
    device = table.device
    slots = [
        int(table[b, position // block_size]) * block_size + position % block_size
        for b, (new, context) in enumerate(rows)
        for position in range(context - new, context)
    ]
    starts = torch.tensor([0] + [new for new, _ in rows], device=device).cumsum(0).int()
    return AttentionBatch(
        query_lens=[new for new, _ in rows],
        context_lens=[context for _, context in rows],
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        block_table=table,
        block_size=block_size,
        query_starts=starts,
        context_lengths=torch.tensor([context for _, context in rows], dtype=torch.int32, device=device),
    )


def differences(make_backend, spec: AttentionSpec, rows, block_size=16, layer=1):
    """(the backend's output, the float64 output) for one step of rows, whose history a previous step wrote."""
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    backend = make_backend(attention_context(spec, block_size=block_size))
    assert backend.refusal(spec) is None
    layout = backend.kv_layout(spec)
    width = -(-max(context for _, context in rows) // block_size) + 1
    num_blocks = width * len(rows) + 3
    shape = [num_blocks if part == "num_blocks" else part for part in layout.shape]
    kv = torch.randn(shape, dtype=dtype, device=device)  # what other sequences left behind
    num_tokens = sum(context for _, context in rows)
    backend.prepare(num_tokens, len(rows))
    table = torch.randperm(num_blocks, device=device)[: width * len(rows)].view(len(rows), width).int()
    sizes = (num_tokens, spec.num_kv_heads, spec.head_dim)
    k, v = torch.randn(2, *sizes, device=device).to(dtype)
    q = torch.randn(num_tokens, spec.num_heads, spec.head_dim, device=device).to(dtype)
    ends = torch.tensor([context for _, context in rows]).cumsum(0).tolist()

    def run(lengths, parts):
        batch = make_batch(lengths, table, block_size)
        index = torch.cat(parts)
        return backend.run(q[index], k[index], v[index], kv, backend.plan(batch), layer)

    def span(b, start, stop):
        return torch.arange(ends[b] - rows[b][1] + start, ends[b] - rows[b][1] + stop, device=device)

    history = [(context - new, context - new) for new, context in rows]
    if any(context for _, context in history):
        run(history, [span(b, 0, n) for b, (n, _) in enumerate(history)])
    out = run(rows, [span(b, context - new, context) for b, (new, context) in enumerate(rows)])
    window = spec.windows[layer] if spec.windows else None
    expected = [
        reference(
            q[span(b, context - new, context)], k[span(b, 0, context)], v[span(b, 0, context)],
            new, context, spec.scale, window, spec.soft_cap,
        )
        for b, (new, context) in enumerate(rows)
    ]  # fmt: skip
    return out.double(), torch.cat(expected)
