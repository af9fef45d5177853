"""LoRA's two products in float64, token by token: what the grouped kernels are compared with."""

from __future__ import annotations

import torch


def shrink_reference(x: torch.Tensor, a: torch.Tensor, order: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """float64 [n, S, R]: A x of each sorted token."""
    out = torch.zeros((len(order), *a.shape[1:3]), dtype=torch.float64)
    for slot, start, count in tiles.tolist():
        tokens = order[start : start + count].long()
        out[start : start + count] = torch.einsum("ik,srk->isr", x[tokens].double(), a[slot].double())
    return out


def expand_reference(
    shrunk: torch.Tensor, b: torch.Tensor, y: torch.Tensor, order: torch.Tensor, tiles: torch.Tensor, sizes: list[int]
) -> torch.Tensor:
    """float64 [T, N]: y plus B times shrunk [n, S, R]; sizes are the slices'."""
    out = y.double().clone()
    for slot, start, count in tiles.tolist():
        tokens, first = order[start : start + count].long(), 0
        for s, size in enumerate(sizes):
            here = slice(first, first + size)
            out[tokens, here] += shrunk[start : start + count, s].double() @ b[slot, here].double().T
            first += size
    return out
