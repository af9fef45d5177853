"""The model's view of one forward pass: positions, attention over the cache, the rows' adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from plugserve.core.contracts.attention import AttentionBackend

AddLora = Callable[[str, int, torch.Tensor, torch.Tensor], None]
"""(site, layer, x, y), as LoraStep.add."""


class LoraStep(Protocol):
    """The adapters of one step's rows, as the decoder's forward pass uses them."""

    def add(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to a projection's output y [T, output_size] what the rows' adapters make of its input x."""


class NoLora:
    """The step of rows without adapters."""

    def add(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor) -> None:
        return


NO_LORA = NoLora()


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
