"""The gated MLP: gate and up fused, activation, down (GLU variants; Shazeer 2020).

Gate and up are cut by their outputs between ranks, down by its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from plugserve.backends.torch.models.parts import Fused, PartContext, Place, split_rows
from plugserve.backends.torch.models.rope import Angles
from plugserve.core.contracts.model import ModelStep

_NAMES = ("mlp.gate_proj", "mlp.up_proj")


class DenseMlp:
    """The LayerPart of layer (counted from 0)."""

    def __init__(self, context: PartContext, layer: int) -> None:
        spec = context.spec
        self._layer = layer
        self._sizes = [spec.intermediate_size] * 2
        self._do = context.operations
        self._reduce = context.collectives.reduce
        self.gate_up = context.empty(2 * spec.intermediate_size, spec.hidden_size)
        self.gate_up_bias = context.empty(2 * spec.intermediate_size) if spec.has_mlp_bias else None
        self.down = context.empty(spec.hidden_size, spec.intermediate_size)
        self.down_bias = context.empty(spec.hidden_size) if spec.has_mlp_bias else None

    def places(self) -> Mapping[str, Place]:
        places = {name: Place(part, 0) for fused in self.fused().values() for name, part in fused.parts.items()}
        places["mlp.down_proj.weight"] = Place(self.down, 1)
        if self.down_bias is not None:
            places["mlp.down_proj.bias"] = Place(self.down_bias, is_first_ranks=True)
        return places

    def fused(self) -> Mapping[str, Fused]:
        fused = {"mlp.gate_up_proj.weight": split_rows(_NAMES, "weight", self.gate_up, self._sizes)}
        if self.gate_up_bias is not None:
            fused["mlp.gate_up_proj.bias"] = split_rows(_NAMES, "bias", self.gate_up_bias, self._sizes)
        return fused

    def forward(self, x: torch.Tensor, angles: list[Angles], step: ModelStep) -> torch.Tensor:
        gate_up = self._do.linear(x, self.gate_up, self.gate_up_bias)
        step.add_lora("gate_up", self._layer, x, gate_up)
        gated = self._do.gated_mlp(gate_up)
        added = self._do.linear(gated, self.down, self.down_bias)
        step.add_lora("down", self._layer, gated, added)
        return self._reduce(added)
