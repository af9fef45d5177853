"""Paged attention over torch's scaled_dot_product_attention: the default on a CPU, and the reference for other
backends.

Keys and values of a sequence are gathered block by block into one contiguous run, then attended eagerly. Rows that
decode one token, or one and a few drafts, are batched with rows of similar length; prompts run one by one. In decoding,
the query heads that share a key head stand where query tokens would, so keys and values are never repeated. Masks are
made once a step for each window that some layer has. Soft caps, which torch's kernel lacks, are computed by a separate
plain path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts.attention import AttentionBatch, AttentionSpec, KVLayout
from plugserve.core.contracts.factories import AttentionContext, AttentionFactory
from plugserve.core.plugin_system.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

_MOST_DECODED = 16  # rows of more new tokens count as prompts
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(slots=True)
class _DecodeGroup:
    """Rows of n new tokens each: token indices [B * n], their blocks [B * num_blocks], and by window the mask
    [B, 1, 1, L], [B, 1, n * heads a key head, L] or None."""

    indices: torch.Tensor | None
    blocks: torch.Tensor
    num_rows: int
    num_queries: int
    length: int
    masks: dict[int | None, torch.Tensor | None]


@dataclass(slots=True)
class _Prompt:
    """One row of several new tokens, at [start, end) of the step; blocks is None when it has no history. masks: by
    window [n, context_len], or None for a plain causal one."""

    start: int
    end: int
    context_len: int
    blocks: torch.Tensor | None
    masks: dict[int | None, torch.Tensor | None]


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
        self._windows: tuple[int | None, ...] = ()
        self._distinct_windows: tuple[int | None, ...] = (None,)

    def refusal(self, spec: AttentionSpec) -> str | None:
        return None

    def kv_layout(self, spec: AttentionSpec) -> KVLayout:
        self._spec = spec
        self._windows = spec.windows or (None,) * spec.num_layers
        self._distinct_windows = tuple(dict.fromkeys(self._windows))
        row = spec.num_kv_heads * spec.head_dim
        return KVLayout(
            shape=(2, "num_blocks", self._block_size, spec.num_kv_heads, spec.head_dim),
            bytes_per_block=2 * self._block_size * row * ELEMENT_BYTES[spec.dtype] * spec.num_layers,
        )

    def prepare(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Nothing to allocate: steps run eagerly."""

    def work_bytes(self, max_num_tokens: int, max_num_seqs: int, max_len: int) -> int:
        """A long prompt's last chunk: keys and values gathered, and repeated for every head, and the mask, which torch
        makes numbers of; scores where they are capped."""
        spec = self._spec
        assert spec is not None, "kv_layout comes first"
        num_heads = spec.num_heads + spec.num_kv_heads
        keys_and_values = 2 * max_len * num_heads * spec.head_dim * ELEMENT_BYTES[spec.dtype]
        masks = max_num_tokens * max_len * (1 + ELEMENT_BYTES[spec.dtype])
        scores = 0 if spec.soft_cap is None else 3 * spec.num_heads * max_num_tokens * max_len * 4
        return keys_and_values + masks + scores

    def plan(self, batch: AttentionBatch) -> _Step:
        step = _Step(batch.slots)
        decoding: dict[tuple[int, int], list[int]] = {}  # rows by new tokens and length class, as indices of the batch
        starts, start = [], 0
        for b, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            starts.append(start)
            if query_len == 1 or 1 < query_len <= min(_MOST_DECODED, context_len - 1):
                num_blocks = -(-context_len // self._block_size)
                decoding.setdefault((query_len, (num_blocks - 1).bit_length()), []).append(b)
            else:
                step.prompts.append(self._plan_prompt(batch, b, start))
            start += query_len
        step.groups = [self._plan_group(batch, rows, starts, n) for (n, _), rows in decoding.items()]
        return step

    def _plan_group(self, batch: AttentionBatch, rows: list[int], starts: list[int], num_queries: int) -> _DecodeGroup:
        torch, size = self._torch, self._block_size
        lengths = [batch.context_lens[b] for b in rows]
        num_blocks = -(-max(lengths) // size)
        device = batch.slots.device
        blocks = batch.block_table[torch.tensor(rows, device=device), :num_blocks].reshape(-1)
        is_whole_step = len(rows) == len(starts)
        tokens = [start + n for start in (starts[b] for b in rows) for n in range(num_queries)]
        make_mask = self._decode_mask if num_queries == 1 else partial(self._draft_mask, num_queries)
        return _DecodeGroup(
            indices=None if is_whole_step else torch.tensor(tokens, device=device),
            blocks=blocks,
            num_rows=len(rows),
            num_queries=num_queries,
            length=max(lengths),
            masks={window: make_mask(lengths, window, device) for window in self._distinct_windows},
        )

    def _draft_mask(
        self, num_queries: int, lengths: list[int], window: int | None, device: torch.device
    ) -> torch.Tensor:
        """[B, 1, num_queries * heads a key head, L]: causal for the last num_queries tokens of each row."""
        assert self._spec is not None, "kv_layout comes first"
        offsets = self._torch.arange(1 - num_queries, 1, device=device)
        ends = (self._torch.tensor(lengths, device=device).unsqueeze(1) + offsets).unsqueeze(2)  # [B, n, 1]
        positions = self._torch.arange(max(lengths), device=device)
        mask = positions < ends
        if window is not None and window < max(lengths):
            mask &= positions >= ends - window
        return mask.repeat_interleave(self._spec.num_heads // self._spec.num_kv_heads, 1).unsqueeze(1)

    def _decode_mask(self, lengths: list[int], window: int | None, device: torch.device) -> torch.Tensor | None:
        """[B, 1, 1, L], or None where every row sees all of it."""
        if window is not None and window >= max(lengths):
            window = None
        if min(lengths) == max(lengths) and window is None:
            return None
        positions = self._torch.arange(max(lengths), device=device)
        ends = self._torch.tensor(lengths, device=device).unsqueeze(1)
        mask = positions < ends
        if window is not None:
            mask &= positions >= ends - window
        return mask[:, None, None, :]

    def _plan_prompt(self, batch: AttentionBatch, b: int, start: int) -> _Prompt:
        query_len, context_len = batch.query_lens[b], batch.context_lens[b]
        is_fresh = query_len == context_len
        device = batch.slots.device
        masks = {window: self._prompt_mask(query_len, context_len, window, device) for window in self._distinct_windows}
        blocks = None if is_fresh else batch.block_table[b, : -(-context_len // self._block_size)]
        return _Prompt(start, start + query_len, context_len, blocks, masks)

    def _prompt_mask(
        self, query_len: int, context_len: int, window: int | None, device: torch.device
    ) -> torch.Tensor | None:
        """[query_len, context_len], or None for a prompt without history of which the window cuts nothing."""
        if window is not None and window >= context_len:
            window = None
        if query_len == context_len and window is None:
            return None
        last = self._torch.arange(context_len - query_len, context_len, device=device).unsqueeze(1)
        keys = self._torch.arange(context_len, device=device)
        mask = keys <= last
        if window is not None:
            mask &= keys > last - window
        return mask

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, step: Any, layer: int
    ) -> torch.Tensor:
        window = self._windows[layer]
        flat = kv.flatten(1, 2)  # [2, num_slots, KVH, D]
        flat[0].index_copy_(0, step.slots, k)
        flat[1].index_copy_(0, step.slots, v)
        if len(step.groups) == 1 and not step.prompts:
            return self._decode(q, kv, step.groups[0], window)
        out = self._torch.empty_like(q, memory_format=self._torch.contiguous_format)
        for group in step.groups:
            out[group.indices] = self._decode(q[group.indices], kv, group, window)
        for prompt in step.prompts:
            here = slice(prompt.start, prompt.end)
            out[here] = self._prefill(q[here], k[here], v[here], kv, prompt, window)
        return out

    def _decode(self, q: torch.Tensor, kv: torch.Tensor, group: _DecodeGroup, window: int | None) -> torch.Tensor:
        """q [B * n, H, D] of n tokens of each row -> [B * n, H, D]."""
        num_rows, num_queries, (_, num_heads, head_dim) = group.num_rows, group.num_queries, q.shape
        num_kv_heads = kv.shape[3]
        gathered = kv.index_select(1, group.blocks).view(2, num_rows, -1, num_kv_heads, head_dim)
        keys, values = gathered[:, :, : group.length].transpose(2, 3)  # [B, KVH, L, D] each
        by_token = (num_rows, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
        queries = q.reshape(by_token).transpose(1, 2).reshape(num_rows, num_kv_heads, -1, head_dim)
        attended = self._sdpa(queries, keys, values, group.masks[window])
        attended = attended.reshape(num_rows, num_kv_heads, num_queries, -1, head_dim).transpose(1, 2)
        return attended.reshape(-1, num_heads, head_dim)

    def _prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        prompt: _Prompt,
        window: int | None,
    ) -> torch.Tensor:
        """q [n, H, D] -> [n, H, D], attending its own n tokens and the history before them."""
        if prompt.blocks is not None:
            gathered = kv.index_select(1, prompt.blocks).flatten(1, 2)  # [2, L, KVH, D]
            k, v = gathered[:, : prompt.context_len]
        group = q.shape[1] // k.shape[1]
        keys, values = (x.transpose(0, 1).repeat_interleave(group, 0).unsqueeze(0) for x in (k, v))
        queries = q.transpose(0, 1).unsqueeze(0)
        mask = prompt.masks[window]
        attended = self._sdpa(queries, keys, values, mask, is_causal=mask is None)
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
        if self._spec.soft_cap is not None:
            return self._capped(q, k, v, mask, is_causal, self._spec.scale, self._spec.soft_cap)
        return self._torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=self._spec.scale
        )

    def _capped(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scale: float,
        cap: float,
    ) -> torch.Tensor:
        """softmax(cap * tanh(q k scale / cap)) v, the softmax in float32 (Gemma 2)."""
        scores = (q @ k.transpose(-1, -2)).mul_(scale / cap).tanh_().mul_(cap)
        if is_causal:
            mask = self._torch.ones(scores.shape[-2:], dtype=self._torch.bool, device=q.device).tril_()
        if mask is not None:
            scores.masked_fill_(~mask, float("-inf"))
        return self._torch.softmax(scores, -1, dtype=self._torch.float32).to(v.dtype) @ v


def make_torch_sdpa(context: AttentionContext) -> TorchSdpaAttention:
    return TorchSdpaAttention(context.block_size)


@hookimpl
def plugserve_attention_backends() -> Mapping[str, AttentionFactory]:
    return {"torch-sdpa": make_torch_sdpa}
