"""LoRA's two products for rows of different adapters, grouped by adapter (as in Punica and S-LoRA; Chen et al. 2023).

shrink makes A x, expand adds B (A x) to the outputs. Tokens are sorted by adapter and cut into tiles of one adapter
each, so that both are plain small matrix products. shrink splits its long sums over programs, whose parts expand adds
up in order: no atomics, equal results every time. Plain torch forms, which the kernels are tested against, stand below.

Shapes: n sorted tokens, S slices of a site, R ranks (a power of two of at least 16), K inputs, N outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK_K = 64
_BLOCK_N = 64
_FEWEST_K = 256  # inputs that one program sums at least


@triton.jit
def _shrink_kernel(
    x_ptr, a_ptr, out_ptr, order_ptr, tiles_ptr, x_stride, num_inputs, inputs_per_part, num_tokens,
    S: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[part, i, s, :] = the part's share of A[slot, s] x[order[i]] for the tokens i of one tile."""
    tile, s, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(tiles_ptr + tile * 3).to(tl.int64)
    start, count = tl.load(tiles_ptr + tile * 3 + 1), tl.load(tiles_ptr + tile * 3 + 2)
    i, r, k = tl.arange(0, BLOCK_M), tl.arange(0, R), tl.arange(0, BLOCK_K)
    tokens = tl.load(order_ptr + start + i, i < count, other=0).to(tl.int64)
    a_base = a_ptr + (slot * S + s) * R * num_inputs
    total = tl.zeros((BLOCK_M, R), dtype=tl.float32)
    first = part * inputs_per_part
    for offset in range(first, tl.minimum(first + inputs_per_part, num_inputs), BLOCK_K):
        inside = offset + k < num_inputs
        x = tl.load(
            x_ptr + tokens[:, None] * x_stride + offset + k[None, :], (i < count)[:, None] & inside[None, :], 0.0
        )
        a = tl.load(a_base + r[None, :] * num_inputs + offset + k[:, None], inside[:, None], 0.0)
        total += tl.dot(x, a, input_precision=PRECISION)
    place = ((part * num_tokens + start + i[:, None]) * S + s) * R + r[None, :]
    tl.store(out_ptr + place, total, (i < count)[:, None])


@triton.jit
def _expand_kernel(
    shrunk_ptr, b_ptr, y_ptr, order_ptr, tiles_ptr, blocks_ptr, y_stride, num_outputs, num_tokens,
    S: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y[order[i], n] += B[slot, n] (sum of shrunk's parts)[i, s] for one tile and one block of outputs of slice s."""
    tile, block = tl.program_id(0), tl.program_id(1)
    slot = tl.load(tiles_ptr + tile * 3).to(tl.int64)
    start, count = tl.load(tiles_ptr + tile * 3 + 1), tl.load(tiles_ptr + tile * 3 + 2)
    s, first = tl.load(blocks_ptr + block * 3), tl.load(blocks_ptr + block * 3 + 1)
    end = tl.load(blocks_ptr + block * 3 + 2)
    i, r, n = tl.arange(0, BLOCK_M), tl.arange(0, R), first + tl.arange(0, BLOCK_N)
    is_token, is_output = i < count, n < end
    tokens = tl.load(order_ptr + start + i, is_token, other=0).to(tl.int64)
    shrunk = tl.zeros((BLOCK_M, R), dtype=tl.float32)
    for part in range(PARTS):
        place = ((part * num_tokens + start + i[:, None]) * S + s) * R + r[None, :]
        shrunk += tl.load(shrunk_ptr + place, is_token[:, None], 0.0)
    b = tl.load(b_ptr + (slot * num_outputs + n[None, :]) * R + r[:, None], is_output[None, :], 0.0)
    added = tl.dot(shrunk.to(b.dtype), b, input_precision=PRECISION)
    places, mask = y_ptr + tokens[:, None] * y_stride + n[None, :], is_token[:, None] & is_output[None, :]
    y = tl.load(places, mask, 0.0)
    tl.store(places, (y.to(tl.float32) + added).to(y.dtype), mask)


def num_parts(num_inputs: int, num_tiles: int) -> int:
    """Over how many programs shrink splits a sum: enough to fill a GPU where there are few tiles."""
    wanted = max(1, 256 // max(1, num_tiles))
    parts = min(wanted, max(1, num_inputs // _FEWEST_K), 16)
    return 1 << (parts.bit_length() - 1)


def output_blocks(sizes: list[int], device: torch.device) -> torch.Tensor:
    """[blocks, 3] int32: slice, first output and end of each block; none reaches over a slice's end."""
    blocks, start = [], 0
    for s, size in enumerate(sizes):
        blocks += [(s, start + n, start + size) for n in range(0, size, _BLOCK_N)]
        start += size
    return torch.tensor(blocks, dtype=torch.int32, device=device)


def shrink(x: torch.Tensor, a: torch.Tensor, order: torch.Tensor, tiles: torch.Tensor, block_m: int) -> torch.Tensor:
    """float32 [parts, n, S, R], whose sum over parts is A x, of x [T, K] and a [slots, S, R, K].

    order [n] int32: the tokens, sorted by slot; tiles [tiles, 3] int32: slot, first place in order, number of tokens
    (at most block_m).
    """
    _, num_slices, rank, num_inputs = a.shape
    parts = num_parts(num_inputs, len(tiles))
    per_part = triton.cdiv(triton.cdiv(num_inputs, parts), _BLOCK_K) * _BLOCK_K
    out = torch.empty((parts, len(order), num_slices, rank), dtype=torch.float32, device=x.device)
    _shrink_kernel[(len(tiles), num_slices, parts)](
        x, a, out, order, tiles, x.stride(0), num_inputs, per_part, len(order),
        S=num_slices, R=rank, BLOCK_M=block_m, BLOCK_K=_BLOCK_K, PRECISION=_precision(x),
    )  # fmt: skip
    return out


def expand(
    shrunk: torch.Tensor,
    b: torch.Tensor,
    y: torch.Tensor,
    order: torch.Tensor,
    tiles: torch.Tensor,
    blocks: torch.Tensor,
    block_m: int,
) -> None:
    """Add B times shrunk's sum over parts to y [T, N] in place; b [slots, N, R], blocks as output_blocks."""
    parts, num_tokens, num_slices, rank = shrunk.shape
    _expand_kernel[(len(tiles), len(blocks))](
        shrunk, b, y, order, tiles, blocks, y.stride(0), b.shape[1], num_tokens,
        S=num_slices, R=rank, PARTS=parts, BLOCK_M=block_m, BLOCK_N=_BLOCK_N, PRECISION=_precision(y),
    )  # fmt: skip


def _precision(x: torch.Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"
