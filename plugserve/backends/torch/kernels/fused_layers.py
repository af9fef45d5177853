"""A layer's operations between its matrix products, each in one Triton kernel: models.layers.PlainLayers is the
reference.

Rounds to the model's dtype where the plain form does, so that both give nearly the same bits.
Shapes: T tokens, H hidden, D head_dim, R rotated dimensions, I intermediate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugserve.backends.torch.kernels.launch import dependent, wait_for_earlier
from plugserve.backends.torch.kernels.one_token_linear import one_token_linear
from plugserve.backends.torch.models.rope import Angles
from plugserve.core.contracts.model import DecoderSpec

_GATE_BLOCK = 1024


@triton.jit
def _normed(x, weight, size, eps, IS_WIDE: tl.constexpr, dtype: tl.constexpr):
    """x / rms(x) * weight of float32 x; rounded before the product, or after it where weights are wide."""
    scaled = x * tl.rsqrt(tl.sum(x * x) / size + eps)
    if IS_WIDE:
        return (scaled * weight).to(dtype)
    return (scaled.to(dtype).to(tl.float32) * weight).to(dtype)


@triton.jit
def _add_norm_kernel(
    x_ptr, added_ptr, added_norm_ptr, norm_ptr, out_ptr, size, eps,
    ADDS: tl.constexpr, NORMS_ADDED: tl.constexpr, NORMS: tl.constexpr, IS_WIDE: tl.constexpr, BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(IS_DEPENDENT)
    start = tl.program_id(0).to(tl.int64) * size
    offsets = tl.arange(0, BLOCK)
    mask = offsets < size
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + start + offsets, mask, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(added_ptr + start + offsets, mask, other=0.0).to(tl.float32)
        if NORMS_ADDED:
            weight = tl.load(added_norm_ptr + offsets, mask, other=0.0).to(tl.float32)
            added = _normed(added, weight, size, eps, IS_WIDE, dtype).to(tl.float32)
        total = (x + added).to(dtype)
        tl.store(x_ptr + start + offsets, total, mask)
        x = total.to(tl.float32)
    if NORMS:
        weight = tl.load(norm_ptr + offsets, mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + start + offsets, _normed(x, weight, size, eps, IS_WIDE, dtype), mask)


@triton.jit
def _heads_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, width, eps,
    NUM_HEADS: tl.constexpr, NUM_QK: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
    NORMS: tl.constexpr, IS_WIDE: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Norm and rotate HEADS heads of one token in place. A head lies as [first half | second half | rest]."""
    wait_for_earlier(IS_DEPENDENT)
    token = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    mask = (head < NUM_QK) & (lane < HALF)
    base = qkv_ptr + token.to(tl.int64) * width + head * HEAD_DIM
    dtype = qkv_ptr.dtype.element_ty
    first = tl.load(base + lane, mask, other=0.0).to(tl.float32)
    second = tl.load(base + HALF + lane, mask, other=0.0).to(tl.float32)
    if NORMS:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        rest_lane = tl.arange(0, REST)[None, :]
        rest_mask = (head < NUM_QK) & (rest_lane < HEAD_DIM - 2 * HALF)
        rest = tl.load(base + 2 * HALF + rest_lane, rest_mask, other=0.0).to(tl.float32)
        squares += tl.sum(rest * rest, 1)
        factor = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        is_q = head < NUM_HEADS
        first = _head_norm(first * factor, q_norm_ptr, k_norm_ptr, lane, is_q, mask, IS_WIDE, dtype)
        second = _head_norm(second * factor, q_norm_ptr, k_norm_ptr, HALF + lane, is_q, mask, IS_WIDE, dtype)
        if HEAD_DIM > 2 * HALF:
            rest = _head_norm(
                rest * factor, q_norm_ptr, k_norm_ptr, 2 * HALF + rest_lane, is_q, rest_mask, IS_WIDE, dtype
            )
            tl.store(base + 2 * HALF + rest_lane, rest.to(dtype), rest_mask)
    angle = token * 2 * HALF + lane
    cos = tl.load(cos_ptr + angle, lane < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle + HALF, lane < HALF, other=0.0).to(tl.float32)
    tl.store(base + lane, ((first * cos).to(dtype).to(tl.float32) - second * sin).to(dtype), mask)
    tl.store(base + HALF + lane, ((second * cos).to(dtype).to(tl.float32) + first * sin).to(dtype), mask)


@triton.jit
def _head_norm(scaled, q_norm_ptr, k_norm_ptr, lane, is_q, mask, IS_WIDE: tl.constexpr, dtype: tl.constexpr):
    q_weight = tl.load(q_norm_ptr + lane, mask & is_q, other=0.0).to(tl.float32)
    k_weight = tl.load(k_norm_ptr + lane, mask & (is_q == 0), other=0.0).to(tl.float32)
    if not IS_WIDE:
        scaled = scaled.to(dtype).to(tl.float32)
    return (scaled * (q_weight + k_weight)).to(dtype).to(tl.float32)


@triton.jit
def _gated_kernel(
    gate_up_ptr, out_ptr, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr
):  # fmt: skip
    wait_for_earlier(IS_DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    dtype = out_ptr.dtype.element_ty
    gate = tl.load(gate_up_ptr + token * 2 * size + offsets, mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * size + size + offsets, mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    else:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate * tl.sigmoid(2.0 * inner)  # 0.5 (1 + tanh z) = sigmoid(2 z)
    tl.store(out_ptr + token * size + offsets, gate.to(dtype) * up.to(dtype), mask)


class FusedLayers:
    """LayerOperations in Triton, for any device that runs it."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._eps = spec.norm_eps
        self._spec = spec
        self._num_qk = spec.num_heads + spec.num_kv_heads
        self._heads_block = min(16, triton.next_power_of_2(self._num_qk))

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[0] == 1 and x.dtype != torch.float32:
            return one_token_linear(x, weight, bias)
        return torch.nn.functional.linear(x, weight, bias)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        self._add_norm(x, None, None, weight, out)
        return out

    def add_norm(
        self, x: torch.Tensor, added: torch.Tensor, added_norm: torch.Tensor | None, norm: torch.Tensor | None
    ) -> torch.Tensor:
        out = x if norm is None else torch.empty_like(x)
        self._add_norm(x, added, added_norm, norm, out)
        return out

    def _add_norm(
        self,
        x: torch.Tensor,
        added: torch.Tensor | None,
        added_norm: torch.Tensor | None,
        norm: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        num_tokens, size = x.shape
        block = triton.next_power_of_2(size)
        weight = added_norm if norm is None else norm
        _add_norm_kernel[(num_tokens,)](
            x, _or(added, x), _or(added_norm, x), _or(norm, x), out, size, self._eps,
            ADDS=added is not None, NORMS_ADDED=added_norm is not None, NORMS=norm is not None,
            IS_WIDE=weight is not None and weight.dtype == torch.float32, BLOCK=block,
            num_warps=min(16, max(1, block // 512)), **dependent(x),
        )  # fmt: skip

    def heads(
        self, qkv: torch.Tensor, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None, angles: Angles
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spec, (cos, sin) = self._spec, angles
        num_tokens, half = qkv.shape[0], cos.shape[-1] // 2
        _heads_kernel[(num_tokens, triton.cdiv(self._num_qk, self._heads_block))](
            qkv, cos, sin, _or(q_norm, qkv), _or(k_norm, qkv), qkv.shape[1], self._eps,
            NUM_HEADS=spec.num_heads, NUM_QK=self._num_qk, HEAD_DIM=spec.head_dim, HALF=half,
            NORMS=q_norm is not None, IS_WIDE=q_norm is not None and q_norm.dtype == torch.float32,
            HEADS=self._heads_block, BLOCK=triton.next_power_of_2(half),
            REST=triton.next_power_of_2(max(1, spec.head_dim - 2 * half)), num_warps=4, **dependent(qkv),
        )  # fmt: skip
        heads = qkv.view(num_tokens, -1, spec.head_dim)
        return heads[:, : spec.num_heads], heads[:, spec.num_heads : self._num_qk], heads[:, self._num_qk :]

    def gated_mlp(self, gate_up: torch.Tensor) -> torch.Tensor:
        num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
        _gated_kernel[(num_tokens, triton.cdiv(size, _GATE_BLOCK))](
            gate_up, out, size, ACTIVATION=self._spec.activation, BLOCK=_GATE_BLOCK, num_warps=4, **dependent(gate_up)
        )
        return out


def _or(tensor: torch.Tensor | None, unread: torch.Tensor) -> torch.Tensor:
    """A dummy pointer for an absent tensor, which the kernel doesn't read."""
    return unread if tensor is None else tensor
