"""Linear layers of very few tokens, which only wait for weights: each program streams some rows of the weight once.

The matrix library leaves up to half of the memory's bandwidth unused there. The first tile of weights is under way
before the kernel that makes the input has ended (see launch.py). torch.nn.functional.linear is the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugserve.core.kernels.launch import dependent, wait_for_earlier

MOST_TOKENS = 4


@triton.jit
def _small_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, num_tokens, num_rows, size,
    HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    lane = tl.arange(0, BLOCK)
    is_row, is_token = row < num_rows, token < num_tokens
    weights = weight_ptr + row.to(tl.int64)[:, None] * size + lane[None, :]
    inputs = x_ptr + token[:, None] * size + lane[None, :]
    if IS_EVEN:
        weight = tl.load(weights, is_row[:, None], other=0.0)
    else:
        weight = tl.load(weights, is_row[:, None] & (lane < size)[None, :], other=0.0)
    wait_for_earlier(IS_DEPENDENT)
    x = tl.load(inputs, is_token[:, None] & (lane < size)[None, :], other=0.0)
    total = weight.to(tl.float32)[None, :, :] * x.to(tl.float32)[:, None, :]
    for start in range(BLOCK, size, BLOCK):
        if IS_EVEN:
            weight = tl.load(weights + start, is_row[:, None], other=0.0)
            x = tl.load(inputs + start, is_token[:, None], other=0.0)
        else:
            inside = (start + lane < size)[None, :]
            weight = tl.load(weights + start, is_row[:, None] & inside, other=0.0)
            x = tl.load(inputs + start, is_token[:, None] & inside, other=0.0)
        total += weight.to(tl.float32)[None, :, :] * x.to(tl.float32)[:, None, :]
    out = tl.sum(total, 2)  # [TOKENS, ROWS]
    if HAS_BIAS:
        out += tl.load(bias_ptr + row, is_row, other=0.0).to(tl.float32)[None, :]
    place = out_ptr + token[:, None] * num_rows + row[None, :]
    tl.store(place, out.to(out_ptr.dtype.element_ty), is_token[:, None] & is_row[None, :])


def small_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [T, K] @ weight [N, K].T + bias [N], summed in float32, for T up to MOST_TOKENS; x and weight contiguous."""
    num_tokens, size = x.shape
    num_rows = weight.shape[0]
    out = torch.empty((num_tokens, num_rows), dtype=x.dtype, device=x.device)
    tokens = triton.next_power_of_2(num_tokens)
    rows, block, num_warps = _tiling(num_rows, size, tokens)
    _small_linear_kernel[(triton.cdiv(num_rows, rows),)](
        x, weight, weight if bias is None else bias, out, num_tokens, num_rows, size,
        HAS_BIAS=bias is not None, TOKENS=tokens, ROWS=rows, BLOCK=block, IS_EVEN=size % block == 0,
        num_warps=num_warps, **dependent(x),
    )  # fmt: skip
    return out


def _tiling(num_rows: int, size: int, tokens: int) -> tuple[int, int, int]:
    """Rows a program, inputs a tile, warps: enough programs to fill the device, enough bytes under way in each."""
    rows = 4 if num_rows >= 8192 else 2 if num_rows >= 2048 else 1
    if tokens > 1:
        rows = min(rows, 2)
    block = min(1024, triton.next_power_of_2(size))
    return rows, block, 4 if rows * tokens <= 4 else 8
