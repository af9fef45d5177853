"""The model's view of one forward pass: positions, attention over the cache, the rows' adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from plugserve.backends.torch.models.lora_sites import NO_LORA, AddLora, LoraStep
from plugserve.core.contracts.attention import AttentionBackend


@dataclass(slots=True)
class StepContext:
    """The ModelStep of a runner: kv holds the cache's tensors by layer, attention_step is what attention planned."""

    positions: torch.Tensor
    kv: list[torch.Tensor]
    attention: AttentionBackend
    attention_step: Any
    lengths: torch.Tensor | None = None
    lora: LoraStep = NO_LORA
    add_lora: AddLora = field(init=False)

    def __post_init__(self) -> None:
        self.add_lora = self.lora.add

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write k and v into the layer's cache, and attend."""
        return self.attention.run(q, k, v, self.kv[layer], self.attention_step, layer)
