"""The projections of a decoder that LoRA adapters change: four sites a layer, and their use in one step."""

from __future__ import annotations

from typing import Any

import torch

from plugserve.core.contracts.lora import LoraManager, LoraSite, LoraSlice
from plugserve.core.contracts.model import DecoderSpec


class ManagedLora:
    """A step in which some rows have adapters; plan is what manager.plan returned for it."""

    __slots__ = ("_apply", "_plan")

    def __init__(self, manager: LoraManager, plan: Any) -> None:
        self._apply = manager.apply
        self._plan = plan

    def add(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor) -> None:
        self._apply(site, layer, x, y, self._plan)


def decoder_sites(spec: DecoderSpec) -> tuple[LoraSite, ...]:
    """The fused matrices of a decoder's layers."""
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    qkv = {"self_attn.q_proj": spec.query_size, "self_attn.k_proj": spec.kv_size, "self_attn.v_proj": spec.kv_size}
    return (
        _site("qkv", hidden, qkv, fused="self_attn.qkv_proj"),
        _site("o", spec.query_size, {"self_attn.o_proj": hidden}),
        _site(
            "gate_up", hidden, {"mlp.gate_proj": intermediate, "mlp.up_proj": intermediate}, fused="mlp.gate_up_proj"
        ),
        _site("down", intermediate, {"mlp.down_proj": hidden}),
    )


def _site(name: str, input_size: int, sizes: dict[str, int], fused: str = "") -> LoraSite:
    slices, start = [], 0
    for module, size in sizes.items():
        slices.append(LoraSlice(module, start, size))
        start += size
    return LoraSite(name, input_size, tuple(slices), fused)
