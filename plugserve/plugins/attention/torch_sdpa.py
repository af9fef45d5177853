"""Paged attention over torch's scaled_dot_product_attention: the default on a CPU, and the oracle for other backends.

Keys and values of a sequence are gathered block by block into one contiguous run, then attended eagerly. Rows that
decode one token are batched with rows of similar length; prompts run one by one. In decoding, the query heads that
share a key head stand where query tokens would, so keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts import (
    AttentionBatch,
    AttentionFactory,
    AttentionSpec,
    KVLayout,
    PluginContext,
)
from plugserve.core.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(slots=True)
class _DecodeGroup:
    """Rows of one new token: token indices [B], their blocks [B * num_blocks], and the mask [B, 1, 1, L] or None."""

    indices: torch.Tensor | None
    blocks: torch.Tensor
    num_rows: int
    length: int
    mask: torch.Tensor | None


@dataclass(slots=True)
class _Prompt:
    """One row of several new tokens, at [start, end) of the step; blocks is None when it has no history."""

    start: int
    end: int
    context_len: int
    blocks: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(slots=True)
class _Step:
    slots: torch.Tensor
    groups: list[_DecodeGroup] = field(default_factory=list)
    prompts: list[_Prompt] = field(default_factory=list)


class TorchSdpaAttention:
    """AttentionBackend for any device that torch knows."""

    graph_safe = False

    def __init__(self, block_size: int) -> None:
        import torch

        self._torch = torch
        self._block_size = block_size
        self._spec: AttentionSpec | None = None

    def refusal(self, spec: AttentionSpec) -> str | None:
        if spec.soft_cap is not None:
            return "it has no soft caps"
        return None

    def kv_layout(self, spec: AttentionSpec) -> KVLayout:
        self._spec = spec
        row = spec.num_kv_heads * spec.head_dim
        return KVLayout(
            shape=(2, "num_blocks", self._block_size, spec.num_kv_heads, spec.head_dim),
            bytes_per_block=2 * self._block_size * row * ELEMENT_BYTES[spec.dtype] * spec.num_layers,
        )

    def prepare(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Nothing to allocate: steps run eagerly."""

    def plan(self, batch: AttentionBatch) -> _Step:
        step = _Step(batch.slots)
        decoding: dict[int, list[int]] = {}  # rows by length class, as indices of the batch
        starts, start = [], 0
        for b, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            starts.append(start)
            if query_len == 1:
                num_blocks = -(-context_len // self._block_size)
                decoding.setdefault((num_blocks - 1).bit_length(), []).append(b)
            else:
                step.prompts.append(self._plan_prompt(batch, b, start))
            start += query_len
        step.groups = [self._plan_group(batch, rows, starts) for rows in decoding.values()]
        return step

    def _plan_group(self, batch: AttentionBatch, rows: list[int], starts: list[int]) -> _DecodeGroup:
        torch, size = self._torch, self._block_size
        lengths = [batch.context_lens[b] for b in rows]
        num_blocks = -(-max(lengths) // size)
        device = batch.slots.device
        blocks = batch.block_table[torch.tensor(rows, device=device), :num_blocks].reshape(-1)
        is_whole_step = len(rows) == len(starts)
        mask = None
        if min(lengths) != max(lengths) or self._window:
            positions = torch.arange(max(lengths), device=device)
            ends = torch.tensor(lengths, device=device).unsqueeze(1)
            mask = positions < ends
            if self._window:
                mask &= positions >= ends - self._window
            mask = mask[:, None, None, :]
        return _DecodeGroup(
            indices=None if is_whole_step else torch.tensor([starts[b] for b in rows], device=device),
            blocks=blocks,
            num_rows=len(rows),
            length=max(lengths),
            mask=mask,
        )

    def _plan_prompt(self, batch: AttentionBatch, b: int, start: int) -> _Prompt:
        torch = self._torch
        query_len, context_len = batch.query_lens[b], batch.context_lens[b]
        is_fresh = query_len == context_len
        mask = None
        if not is_fresh or self._window:
            last = torch.arange(context_len - query_len, context_len, device=batch.slots.device).unsqueeze(1)
            keys = torch.arange(context_len, device=batch.slots.device)
            mask = keys <= last
            if self._window:
                mask &= keys > last - self._window
        blocks = None if is_fresh else batch.block_table[b, : -(-context_len // self._block_size)]
        return _Prompt(start, start + query_len, context_len, blocks, mask)

    @property
    def _window(self) -> int | None:
        return self._spec.window if self._spec else None

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, step: Any) -> torch.Tensor:
        flat = kv.flatten(1, 2)  # [2, num_slots, KVH, D]
        flat[0].index_copy_(0, step.slots, k)
        flat[1].index_copy_(0, step.slots, v)
        if len(step.groups) == 1 and not step.prompts:
            return self._decode(q, kv, step.groups[0])
        out = self._torch.empty_like(q, memory_format=self._torch.contiguous_format)
        for group in step.groups:
            out[group.indices] = self._decode(q[group.indices], kv, group)
        for prompt in step.prompts:
            here = slice(prompt.start, prompt.end)
            out[here] = self._prefill(q[here], k[here], v[here], kv, prompt)
        return out

    def _decode(self, q: torch.Tensor, kv: torch.Tensor, group: _DecodeGroup) -> torch.Tensor:
        """q [B, H, D] of one token each -> [B, H, D]."""
        num_rows, num_heads, head_dim = q.shape
        num_kv_heads = kv.shape[3]
        gathered = kv.index_select(1, group.blocks).view(2, num_rows, -1, num_kv_heads, head_dim)
        keys, values = gathered[:, :, : group.length].transpose(2, 3)  # [B, KVH, L, D] each
        queries = q.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        attended = self._sdpa(queries, keys, values, group.mask)
        return attended.reshape(num_rows, num_heads, head_dim)

    def _prefill(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, prompt: _Prompt
    ) -> torch.Tensor:
        """q [n, H, D] -> [n, H, D], attending its own n tokens and the history before them."""
        if prompt.blocks is not None:
            gathered = kv.index_select(1, prompt.blocks).flatten(1, 2)  # [2, L, KVH, D]
            k, v = gathered[:, : prompt.context_len]
        group = q.shape[1] // k.shape[1]
        keys, values = (x.transpose(0, 1).repeat_interleave(group, 0).unsqueeze(0) for x in (k, v))
        queries = q.transpose(0, 1).unsqueeze(0)
        attended = self._sdpa(queries, keys, values, prompt.mask, is_causal=prompt.mask is None)
        return attended[0].transpose(0, 1)

    def _sdpa(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        assert self._spec is not None, "kv_layout comes first"
        return self._torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=self._spec.scale
        )


def make_torch_sdpa(context: PluginContext) -> TorchSdpaAttention:
    return TorchSdpaAttention(context.block_size)


@hookimpl
def plugserve_attention_backends() -> Mapping[str, AttentionFactory]:
    return {"torch-sdpa": make_torch_sdpa}
