"""The pieces of a decoder as plain functions over tensors. Knows nothing of a whole model, pages or requests.

Shapes: T tokens, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn.functional import gelu, linear, silu

__all__ = ["GATED_MLPS", "linear", "rms_norm", "soft_cap"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., H] / rms(x) * weight; the mean square in float32 (Zhang & Sennrich 2019).

    A weight that is wider than x multiplies before the result is rounded (Gemma), else after (Llama).
    """
    if x.dtype == torch.float32:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight).to(x.dtype) if weight.dtype == torch.float32 else normed.to(x.dtype) * weight


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(x / cap), in place."""
    return x.div_(cap).tanh_().mul_(cap)


def _gated_mlp(gate_up: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """activation(gate) * up, from [T, 2 I] to [T, I] (GLU variants; Shazeer 2020)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)


GATED_MLPS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": partial(_gated_mlp, activation=silu),
    "gelu": partial(_gated_mlp, activation=gelu),
    "gelu_pytorch_tanh": partial(_gated_mlp, activation=partial(gelu, approximate="tanh")),
}
"""By decoder_spec.ACTIVATIONS."""
