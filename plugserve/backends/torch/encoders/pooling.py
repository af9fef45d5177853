"""From hidden states to one vector an input, as sentence-transformers defines it. B inputs, T tokens, H features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from plugserve.core.errors import ModelError
from plugserve.core.model_files.encoder_files import DenseFiles

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def _mean_sqrt_len(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Later tokens weigh more: 1, 2, 3, ..."""
    return _mean(hidden, mask * torch.arange(1, hidden.shape[1] + 1, device=hidden.device))


def _cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.sum(1).long() - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


POOLS: Final[Mapping[str, Pool]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "last": _last,
}
"""float32 hidden states [B, T, H] and mask [B, T] (1 for tokens, 0 for padding at the end) to [B, H]."""

ACTIVATE: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, -1),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
}


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer and its activation, float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str

    @classmethod
    def of(cls, files: DenseFiles, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Dense:
        """Raises ModelError for tensors that are missing or misshapen."""
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (files.out_features, files.in_features)}
        if files.has_bias:
            shapes["linear.bias"] = (files.out_features,)
        for name, shape in shapes.items():
            found = tensors.get(name)
            if found is None:
                raise ModelError(f"{files.folder}: the checkpoint lacks {name}")
            if tuple(found.shape) != shape:
                raise ModelError(
                    f"{files.folder}: tensor {name} has shape {list(found.shape)}, its config asks for {list(shape)}"
                )
        placed = {name: tensors[name].float().to(device) for name in shapes}
        return cls(placed["linear.weight"], placed.get("linear.bias"), files.activation)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ACTIVATE[self.activation](torch.nn.functional.linear(x, self.weight, self.bias))
