"""Paged attention against a float64 reference: ragged lengths, groups, block edges, windows, soft caps."""

from __future__ import annotations

import pytest
import torch

from plugserve.core.contracts import AttentionBatch, AttentionSpec, PluginContext
from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa

BATCHES = {
    "decode, one row": [(1, 1)],
    "decode, ragged": [(1, 1), (1, 15), (1, 16), (1, 17), (1, 33), (1, 100)],
    "decode, equal": [(1, 20), (1, 20)],
    "fresh prompts": [(5, 5), (16, 16), (17, 17)],
    "chunks with history": [(5, 21), (16, 32), (2, 40)],
    "mixed": [(1, 50), (7, 7), (1, 16), (9, 60), (1, 17)],
}


def reference(q, k_all, v_all, query_len, context_len, scale, window, soft_cap):
    """[n, H, D] in float64 for one sequence; k_all, v_all [context, KVH, D]."""
    group = q.shape[1] // k_all.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k_all, v_all))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    last = torch.arange(context_len - query_len, context_len).unsqueeze(1)
    keys = torch.arange(context_len)
    visible = keys <= last
    if window:
        visible &= keys > last - window
    scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


@pytest.mark.parametrize("soft_cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 32), (9, 3, 64), (7, 1, 16)])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_float64_reference(name, num_heads, num_kv_heads, head_dim, window, soft_cap):
    torch.manual_seed(0)
    size, num_blocks = 16, 64
    spec = AttentionSpec(
        2, num_heads, num_kv_heads, head_dim, head_dim**-0.5, "float32", "cpu", windows=(5, window), soft_cap=soft_cap
    )
    backend = make_torch_sdpa(PluginContext(options=None, config=None, block_size=size))
    assert backend.refusal(spec) is None
    layout = backend.kv_layout(spec)
    shape = [num_blocks if part == "num_blocks" else part for part in layout.shape]
    kv = torch.randn(shape)  # what other sequences left behind
    blocks = torch.randperm(num_blocks).tolist()
    rows = BATCHES[name]
    table = torch.zeros((len(rows), 8), dtype=torch.int32)
    history, slots, new = [], [], []
    for b, (query_len, context_len) in enumerate(rows):
        mine = [blocks.pop() for _ in range(-(-context_len // size))]
        table[b, : len(mine)] = torch.tensor(mine)
        k, v = torch.randn(2, context_len, num_kv_heads, head_dim)
        for position in range(context_len):
            slot = mine[position // size] * size + position % size
            if position < context_len - query_len:
                kv.flatten(1, 2)[0, slot], kv.flatten(1, 2)[1, slot] = k[position], v[position]
            else:
                slots.append(slot)
        history.append((k, v))
        new.append((k[context_len - query_len :], v[context_len - query_len :]))
    q = torch.randn(len(slots), num_heads, head_dim)
    step = backend.plan(AttentionBatch([n for n, _ in rows], [c for _, c in rows], torch.tensor(slots), table, size))
    out = backend.run(q, torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), kv, step, 1)
    at = 0
    for (query_len, context_len), (k, v) in zip(rows, history, strict=True):
        expected = reference(q[at : at + query_len], k, v, query_len, context_len, spec.scale, window, soft_cap)
        torch.testing.assert_close(out[at : at + query_len].double(), expected, atol=2e-6, rtol=2e-5)
        at += query_len
