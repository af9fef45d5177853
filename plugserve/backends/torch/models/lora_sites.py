"""The projections of a decoder that LoRA adapters change: four sites a layer, and their use in one step."""

from __future__ import annotations

from typing import Any

import torch

from plugserve.core.contracts.lora import LoraManager, LoraSite, LoraSlice
from plugserve.core.contracts.model import DecoderSpec


class ManagedLora:
    """A step in which some rows have adapters; plan is what manager.plan returned for it. first_layer is the number in
    the model of layer 0 here."""

    __slots__ = ("_apply", "_first_layer", "_plan")

    def __init__(self, manager: LoraManager, plan: Any, first_layer: int = 0) -> None:
        self._apply = manager.apply
        self._plan = plan
        self._first_layer = first_layer

    def add(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor) -> None:
        self._apply(site, self._first_layer + layer, x, y, self._plan)


Part = tuple[int, int]
"""(number, of how many equal parts)"""
_WHOLE: Part = (0, 1)


def decoder_sites(spec: DecoderSpec, own: Part = _WHOLE, kv: Part = _WHOLE) -> tuple[LoraSite, ...]:
    """The fused matrices of a decoder's layers. spec describes one rank's share of them: part own of query heads and
    MLP, part kv of the key heads."""
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    q, k, v = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
    qkv = {q: (spec.query_size, own), k: (spec.kv_size, kv), v: (spec.kv_size, kv)}
    gate_up = {"mlp.gate_proj": (intermediate, own), "mlp.up_proj": (intermediate, own)}
    return (
        _site("qkv", hidden, _WHOLE, qkv, fused="self_attn.qkv_proj"),
        _site("o", spec.query_size, own, {"self_attn.o_proj": (hidden, _WHOLE)}),
        _site("gate_up", hidden, _WHOLE, gate_up, fused="mlp.gate_up_proj"),
        _site("down", intermediate, own, {"mlp.down_proj": (hidden, _WHOLE)}),
    )


def _site(
    name: str, input_size: int, input_part: Part, sizes: dict[str, tuple[int, Part]], fused: str = ""
) -> LoraSite:
    slices, start = [], 0
    for module, (size, part) in sizes.items():
        slices.append(LoraSlice(module, start, size, *part))
        start += size
    return LoraSite(name, input_size, tuple(slices), fused, *input_part)
