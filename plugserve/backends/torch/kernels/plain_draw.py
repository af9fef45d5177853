"""Draws the next token of rows whose only sampling parameter is a temperature, in two kernels.

Tested against core/sampling_law/reference.py, as sampling/sampler.py is. Greedy rows take the largest logit (the lowest
id among equals). Others invert the distribution's cumulative sum at a number that is a hash of (seed, position), in
order of ids.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugserve.backends.torch.kernels.launch import dependent, wait_for_earlier

_BLOCK = 2048


@triton.jit
def _scaled_logits(logits_ptr, row, ids, vocab_size, scale, cap, HAS_CAP: tl.constexpr):
    values = tl.load(logits_ptr + row.to(tl.int64) * vocab_size + ids, ids < vocab_size, other=float("-inf"))
    values = values.to(tl.float32)
    if HAS_CAP:
        values = tl.where(ids < vocab_size, cap * (2.0 * tl.sigmoid(2.0 * values / cap) - 1.0), float("-inf"))
    return values * scale


@triton.jit
def _partials_kernel(
    logits_ptr, rows_ptr, temperature_ptr, most_ptr, best_ptr, total_ptr, vocab_size, state_stride, cap,
    HAS_CAP: tl.constexpr, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Of one block of ids: its largest scaled logit, the id that has it, and the sum of exp(scaled - largest)."""
    wait_for_earlier(IS_DEPENDENT)
    s, block = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows_ptr + s).to(tl.int64)
    temperature = tl.load(temperature_ptr + row * state_stride)
    scale = tl.where(temperature > 0.0, 1.0 / temperature, 1.0)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    values = _scaled_logits(logits_ptr, s, ids, vocab_size, scale, cap, HAS_CAP)
    most = tl.max(values, 0)
    place = s * tl.num_programs(1) + block
    tl.store(most_ptr + place, most)
    tl.store(best_ptr + place, tl.min(tl.where(values == most, ids, vocab_size), 0))
    tl.store(total_ptr + place, tl.sum(tl.exp(values - most), 0))


@triton.jit
def _uniform(seed, position):
    """A number in [0, 1) from int64 seed and position (SplitMix64), in float64."""
    z = seed.to(tl.uint64, bitcast=True) + (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return (z >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _draw_kernel(
    logits_ptr, rows_ptr, temperature_ptr, seed_ptr, known_ptr, most_ptr, best_ptr, total_ptr, drawn_ptr,
    vocab_size, num_blocks, state_stride, seed_stride, cap,
    HAS_CAP: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One row: the id drawn, or -1 where logits are not numbers."""
    wait_for_earlier(IS_DEPENDENT)
    s = tl.program_id(0)
    row = tl.load(rows_ptr + s).to(tl.int64)
    temperature = tl.load(temperature_ptr + row * state_stride)
    lane = tl.arange(0, BLOCKS)
    place = s * num_blocks + lane
    mosts = tl.load(most_ptr + place, lane < num_blocks, other=float("-inf"))
    totals = tl.load(total_ptr + place, lane < num_blocks, other=0.0)
    bests = tl.load(best_ptr + place, lane < num_blocks, other=vocab_size)
    most = tl.max(mosts, 0)
    is_broken = tl.sum((totals != totals).to(tl.int32), 0) > 0
    drawn = tl.min(tl.where(mosts == most, bests, vocab_size), 0)
    if (temperature > 0.0) & (is_broken == 0):
        weights = (totals * tl.exp(mosts - most)).to(tl.float64)
        weights = tl.where(lane < num_blocks, weights, 0.0)
        sums = tl.cumsum(weights, 0)
        total = tl.sum(weights, 0)
        number = _uniform(tl.load(seed_ptr + row * seed_stride), tl.load(known_ptr + s).to(tl.int64))
        target = tl.minimum(number * total, total * 0.9999999999999999)
        block = tl.sum((sums <= target).to(tl.int32), 0)
        block = tl.minimum(block, tl.max(tl.where(weights > 0.0, lane, 0), 0))
        before = tl.sum(tl.where(lane < block, weights, 0.0), 0)
        ids = block * BLOCK + tl.arange(0, BLOCK)
        scaled = _scaled_logits(logits_ptr, s, ids, vocab_size, 1.0 / temperature, cap, HAS_CAP)
        inner = tl.exp(scaled - most).to(tl.float64)
        inner_sums = tl.cumsum(inner, 0)
        inside = tl.sum((inner_sums <= target - before).to(tl.int32), 0)
        last = tl.max(tl.where(inner > 0.0, tl.arange(0, BLOCK), 0), 0)
        drawn = block * BLOCK + tl.minimum(inside, last)
    tl.store(drawn_ptr + s, tl.where(is_broken, -1, drawn))


class PlainDraw:
    """Draws for up to max_num_rows rows of vocab_size logits."""

    def __init__(self, max_num_rows: int, vocab_size: int, soft_cap: float | None, device: torch.device) -> None:
        self._num_blocks = triton.cdiv(vocab_size, _BLOCK)
        self._vocab_size = vocab_size
        self._cap = soft_cap
        shape = (max_num_rows, self._num_blocks)
        self._most = torch.empty(shape, dtype=torch.float32, device=device)
        self._total = torch.empty(shape, dtype=torch.float32, device=device)
        self._best = torch.empty(shape, dtype=torch.int32, device=device)

    def draw(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        num_known: torch.Tensor,
        temperature: torch.Tensor,
        seed: torch.Tensor,
        drawn: torch.Tensor,
    ) -> None:
        """Fill drawn [S] int32 from logits [S, V] before the soft cap; -1 where they are not numbers. rows [S] index
        temperature and seed; num_known [S] tokens of a row are known, so the drawn one stands at that position."""
        num_rows = logits.shape[0]
        cap = {"cap": self._cap or 0.0, "HAS_CAP": self._cap is not None, "BLOCK": _BLOCK, **dependent(logits)}
        _partials_kernel[(num_rows, self._num_blocks)](
            logits, rows, temperature, self._most, self._best, self._total, self._vocab_size, temperature.stride(0),
            num_warps=4, **cap,
        )  # fmt: skip
        _draw_kernel[(num_rows,)](
            logits, rows, temperature, seed, num_known, self._most, self._best, self._total, drawn,
            self._vocab_size, self._num_blocks, temperature.stride(0), seed.stride(0), **cap,
            BLOCKS=triton.next_power_of_2(self._num_blocks), num_warps=4,
        )  # fmt: skip
