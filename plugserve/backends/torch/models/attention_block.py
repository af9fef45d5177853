"""Grouped-query attention with rotary positions: projection, normed and rotated heads, projection back.

Queries, keys and values are cut by heads between ranks, the projection back by its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from plugserve.backends.torch.models.parts import Fused, PartContext, Place, split_rows
from plugserve.backends.torch.models.rope import Angles
from plugserve.core.contracts.model import ModelStep

_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class AttentionBlock:
    """The LayerPart of layer (counted from 0)."""

    def __init__(self, context: PartContext, layer: int) -> None:
        spec = context.spec
        self._layer = layer
        self._rope = spec.rope_of(layer)
        self._query_size = spec.query_size
        self._sizes = [spec.query_size, spec.kv_size, spec.kv_size]
        self._do = context.operations
        self._reduce = context.collectives.reduce
        self._kv_part = context.kv_part
        size = sum(self._sizes)
        self.qkv = context.empty(size, spec.hidden_size)
        self.qkv_bias = context.empty(size) if spec.has_qkv_bias else None
        self.q_norm = context.empty_norm(spec.head_dim) if spec.has_qk_norms else None
        self.k_norm = context.empty_norm(spec.head_dim) if spec.has_qk_norms else None
        self.output = context.empty(spec.hidden_size, spec.query_size)
        self.output_bias = context.empty(spec.hidden_size) if spec.has_output_bias else None

    def places(self) -> Mapping[str, Place]:
        places = {name: self._place(name, part) for one in self.fused().values() for name, part in one.parts.items()}
        places["self_attn.o_proj.weight"] = Place(self.output, 1)
        for name, tensor in (
            ("self_attn.q_norm.weight", self.q_norm),
            ("self_attn.k_norm.weight", self.k_norm),
        ):
            if tensor is not None:
                places[name] = Place(tensor)
        if self.output_bias is not None:
            places["self_attn.o_proj.bias"] = Place(self.output_bias, is_first_ranks=True)
        return places

    def _place(self, name: str, rows: torch.Tensor) -> Place:
        return Place(rows, 0) if "q_proj" in name else Place(rows, 0, part=self._kv_part)

    def fused(self) -> Mapping[str, Fused]:
        fused = {"self_attn.qkv_proj.weight": split_rows(_NAMES, "weight", self.qkv, self._sizes)}
        if self.qkv_bias is not None:
            fused["self_attn.qkv_proj.bias"] = split_rows(_NAMES, "bias", self.qkv_bias, self._sizes)
        return fused

    def forward(self, x: torch.Tensor, angles: list[Angles], step: ModelStep) -> torch.Tensor:
        qkv = self._do.linear(x, self.qkv, self.qkv_bias)
        step.add_lora("qkv", self._layer, x, qkv)
        q, k, v = self._do.heads(qkv, self.q_norm, self.k_norm, angles[self._rope])
        attended = step.attend(self._layer, q, k, v).reshape(-1, self._query_size)
        added = self._do.linear(attended, self.output, self.output_bias)
        step.add_lora("o", self._layer, attended, added)
        return self._reduce(added)
