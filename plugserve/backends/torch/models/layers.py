"""The pieces of a decoder as plain functions over tensors.

Shapes: T tokens, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch.nn.functional import gelu, linear, silu

from plugserve.backends.torch.models.rope import Angles, apply_rope
from plugserve.core.contracts.model import DecoderSpec

__all__ = ["GATED_MLPS", "LayerOperations", "PlainLayers", "rms_norm", "soft_cap"]


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
"""By contracts.model.ACTIVATIONS."""


class LayerOperations(Protocol):
    """A layer's operations between its matrix products. PlainLayers is the reference for fused kernels."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, K] @ weight [N, K].T + bias."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """rms_norm of x [T, H]."""

    def add_norm(
        self, x: torch.Tensor, added: torch.Tensor, added_norm: torch.Tensor | None, norm: torch.Tensor | None
    ) -> torch.Tensor:
        """Add added [T, H] (normed by added_norm if given) to x in place; returns rms_norm(x, norm), or x without."""

    def heads(
        self, qkv: torch.Tensor, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, heads, D], k and v [T, KV heads, D] of the fused projection's output [T, (heads + 2 KV heads) D]; q and
        k normed head by head where norms are given, and rotated. May overwrite qkv."""

    def gated_mlp(self, gate_up: torch.Tensor) -> torch.Tensor:
        """activation(gate) * up, from [T, 2 I] to [T, I]."""


class PlainLayers:
    """LayerOperations in torch, on any device."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._eps = spec.norm_eps
        self._num_heads = spec.num_heads
        self._num_qk = spec.num_heads + spec.num_kv_heads
        self._head_dim = spec.head_dim
        self.gated_mlp = GATED_MLPS[spec.activation]

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, weight, bias)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight, self._eps)

    def add_norm(
        self, x: torch.Tensor, added: torch.Tensor, added_norm: torch.Tensor | None, norm: torch.Tensor | None
    ) -> torch.Tensor:
        x.add_(added if added_norm is None else rms_norm(added, added_norm, self._eps))
        return x if norm is None else rms_norm(x, norm, self._eps)

    def heads(
        self, qkv: torch.Tensor, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads = qkv.view(qkv.shape[0], -1, self._head_dim)
        qk, v = heads[:, : self._num_qk], heads[:, self._num_qk :]
        if q_norm is None or k_norm is None:
            qk = apply_rope(qk, *angles)
            return qk[:, : self._num_heads], qk[:, self._num_heads :], v
        q = rms_norm(qk[:, : self._num_heads], q_norm, self._eps)
        k = rms_norm(qk[:, self._num_heads :], k_norm, self._eps)
        return apply_rope(q, *angles), apply_rope(k, *angles), v
