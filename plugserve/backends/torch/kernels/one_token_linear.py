"""A linear layer of one token, which only waits for weights: each program streams some rows of the weight once.

The matrix library leaves up to half of the memory's bandwidth unused there (from two tokens on it is the better one).
The first tile of weights is under way before the kernel that makes the input has ended (see launch.py).
torch.nn.functional.linear is the reference; benchmarks/one_token_linear.py compares tilings.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugserve.backends.torch.kernels.launch import dependent, wait_for_earlier


@triton.jit
def _one_token_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, num_rows, size,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, IS_EVEN: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, BLOCK)
    is_row = (row < num_rows)[:, None]
    weights = weight_ptr + row.to(tl.int64)[:, None] * size + lane[None, :]
    if IS_EVEN:
        weight = tl.load(weights, is_row, other=0.0)
    else:
        weight = tl.load(weights, is_row & (lane < size)[None, :], other=0.0)
    wait_for_earlier(IS_DEPENDENT)
    x = tl.load(x_ptr + lane, lane < size, other=0.0)
    total = weight.to(tl.float32) * x.to(tl.float32)[None, :]
    for start in range(BLOCK, size, BLOCK):
        if IS_EVEN:
            weight = tl.load(weights + start, is_row, other=0.0)
            x = tl.load(x_ptr + start + lane)
        else:
            inside = start + lane < size
            weight = tl.load(weights + start, is_row & inside[None, :], other=0.0)
            x = tl.load(x_ptr + start + lane, inside, other=0.0)
        total += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    out = tl.sum(total, 1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + row, row < num_rows, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), row < num_rows)


def one_token_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [1, K] @ weight [N, K].T + bias [N], summed in float32; x and weight contiguous."""
    num_rows, size = weight.shape
    out = torch.empty((1, num_rows), dtype=x.dtype, device=x.device)
    rows, block, num_warps = _tiling(num_rows, size)
    _one_token_linear_kernel[(triton.cdiv(num_rows, rows),)](
        x, weight, weight if bias is None else bias, out, num_rows, size,
        HAS_BIAS=bias is not None, ROWS=rows, BLOCK=block, IS_EVEN=size % block == 0,
        num_warps=num_warps, **dependent(x),
    )  # fmt: skip
    return out


def _tiling(num_rows: int, size: int) -> tuple[int, int, int]:
    """Rows a program, inputs a tile, warps; measured on an H100."""
    if num_rows >= 8192:
        return 4, 512 if size >= 1024 else 256, 4
    if size <= 1024:
        return 4, triton.next_power_of_2(size), 4
    return (2, 2048, 4) if num_rows <= 2048 else (4, 512, 4)
