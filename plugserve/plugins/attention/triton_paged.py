"""Paged attention in Triton: the default on GPUs. Steps can be captured as CUDA graphs.

Rows of one token and longer rows have separate kernels; each skips the other's rows. A row of one
token is split over several programs where there are few rows, so that one long sequence fills the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts.attention import AttentionBatch, AttentionSpec, KVLayout
from plugserve.core.contracts.factories import AttentionContext, AttentionFactory
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.plugins.attention.torch_sdpa import ELEMENT_BYTES

if TYPE_CHECKING:
    import torch

_LARGEST_HEAD_DIM = 256
_PROGRAMS_PER_CORE = 4  # of the decode kernel, when rows are few
_MOST_SPLITS = 64
_LEAST_SPLIT = 128  # tokens: smaller parts cost more to merge than they save
_LONG_CONTEXT = 4096  # tokens: from here on, larger tiles of queries save more reads than they leave idle at the end


@dataclass(slots=True)
class _Step:
    """The data that all layers of a step use. num_splits programs share a row of one token."""

    slots: torch.Tensor
    block_table: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    num_rows: int
    num_tokens: int
    has_single_rows: bool
    prefill: tuple[_Tiling, ...]
    num_splits: int


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Queries x key heads rows, keys a tile, warps and pipeline stages of a kernel."""

    rows: int
    tile: int
    num_warps: int
    num_stages: int


class TritonPagedAttention:
    """AttentionBackend for devices that Triton compiles for; with is_interpreted for its interpreter on a CPU, which
    is for tests (TRITON_INTERPRET=1 has to be set before Triton is imported)."""

    graph_safe = True

    def __init__(self, block_size: int, *, is_interpreted: bool = False) -> None:
        self._block_size = block_size
        self._is_interpreted = is_interpreted
        self._spec: AttentionSpec | None = None
        self._windows: tuple[int | None, ...] = ()

    def refusal(self, spec: AttentionSpec) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed (pip install 'plugserve[gpu]')"
        if not spec.device.startswith("cuda") and not self._is_interpreted:
            return f"no GPU (device {spec.device})"
        if spec.head_dim > _LARGEST_HEAD_DIM:
            return f"head_dim {spec.head_dim} is over {_LARGEST_HEAD_DIM}"
        if spec.num_heads // spec.num_kv_heads > 64:
            return f"{spec.num_heads // spec.num_kv_heads} query heads to a key head are over 64"
        if self._block_size & (self._block_size - 1):
            return f"block size {self._block_size} is not a power of two"
        return None

    def kv_layout(self, spec: AttentionSpec) -> KVLayout:
        from plugserve.backends.torch.kernels.launch import dependent
        from plugserve.plugins.attention import attention_kernels as triton_kernels

        self._dependent = dependent
        self._kernels = triton_kernels
        self._spec = spec
        self._windows = spec.windows or (None,) * spec.num_layers
        self._group = spec.num_heads // spec.num_kv_heads
        self._decode = _decode_tiling(spec, self._group)
        self._prefill = _prefill_tiling(spec, self._group)
        self._long_prefill = _long_prefill_tiling(spec, self._prefill)
        self._uncompiled = tuple(dict.fromkeys((self._prefill, self._long_prefill)))
        has_cap = spec.soft_cap is not None
        self._scale = spec.scale if has_cap else spec.scale * triton_kernels.LOG2_E
        self._constants: dict[str, Any] = {
            "HAS_CAP": has_cap,
            "PRECISION": "ieee" if spec.dtype == "float32" else "tf32",  # tf32 would lose a float32 model's bits
            "NUM_KV_HEADS": spec.num_kv_heads,
            "GROUP": self._group,
            "HEAD_DIM": spec.head_dim,
            "BLOCK_D": _power_of_two(spec.head_dim),
            "BLOCK_SIZE": self._block_size,
        }
        row = spec.num_kv_heads * spec.head_dim
        return KVLayout(
            shape=("num_blocks", 2, spec.num_kv_heads, self._block_size, spec.head_dim),
            bytes_per_block=2 * self._block_size * row * ELEMENT_BYTES[spec.dtype] * spec.num_layers,
        )

    def prepare(self, max_num_tokens: int, max_num_seqs: int) -> None:
        import torch

        spec = self._spec
        assert spec is not None, "kv_layout comes first"
        device = torch.device(spec.device)
        self._num_programs = _num_programs(device)
        parts = self._num_programs  # B rows x key heads x splits are never more, unless nothing is split
        width = _power_of_two(spec.head_dim)
        self._acc = torch.empty(parts * self._decode.rows * width, dtype=torch.float32, device=device)
        self._stats = torch.empty(parts * 2 * self._decode.rows, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(max_num_seqs * spec.num_kv_heads, dtype=torch.int32, device=device)

    def work_bytes(self, max_num_tokens: int, max_num_seqs: int, max_len: int) -> int:
        """What prepare allocates."""
        import torch

        spec = self._spec
        assert spec is not None, "kv_layout comes first"
        numbers = _num_programs(torch.device(spec.device)) * self._decode.rows * (_power_of_two(spec.head_dim) + 2)
        return 4 * (numbers + max_num_seqs * spec.num_kv_heads)

    def _splits(self, num_rows: int) -> int:
        """Programs that share one row and key head, so that num_rows of them fill the device."""
        assert self._spec is not None
        wanted = self._num_programs // max(1, num_rows * self._spec.num_kv_heads)
        return max(1, min(_MOST_SPLITS, 1 << wanted.bit_length() >> 1))

    def _prefill_of(self, batch: AttentionBatch) -> tuple[_Tiling, ...]:
        """The tiling of the step's long rows; all, one after another, in the first step, so that every kernel is
        compiled before requests come."""
        if max(batch.query_lens, default=0) <= 1:
            return ()
        first, self._uncompiled = self._uncompiled, ()
        return first or (self._tiling_for(batch),)

    def _tiling_for(self, batch: AttentionBatch) -> _Tiling:
        longest = max(batch.context_lens, default=0)
        if longest < _LONG_CONTEXT:
            return self._prefill
        pairs = [n * seen for n, seen in zip(batch.query_lens, batch.context_lens, strict=True) if n > 1]
        mean = sum(pairs) / max(1, sum(n for n in batch.query_lens if n > 1))
        return self._long_prefill if mean >= _LONG_CONTEXT else self._prefill

    def plan(self, batch: AttentionBatch) -> _Step:
        return _Step(
            slots=batch.slots,
            block_table=batch.block_table,
            starts=batch.query_starts,
            lengths=batch.context_lengths,
            num_rows=len(batch.query_lens),
            num_tokens=batch.slots.shape[0],
            has_single_rows=min(batch.query_lens, default=0) <= 1,
            prefill=self._prefill_of(batch),
            num_splits=self._splits(len(batch.query_lens)),
        )

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, step: Any, layer: int
    ) -> torch.Tensor:
        spec = self._spec
        assert spec is not None
        launch = self._dependent(q)
        self._kernels.write_kernel[(step.num_tokens,)](
            k, v, kv, step.slots, k.stride(0), v.stride(0),
            NUM_KV_HEADS=spec.num_kv_heads, HEAD_DIM=spec.head_dim, BLOCK_SIZE=self._block_size,
            BLOCK=_power_of_two(spec.num_kv_heads * spec.head_dim), num_warps=4, **launch,
        )  # fmt: skip
        out = q.new_empty((step.num_tokens, spec.num_heads, spec.head_dim))
        window = self._windows[layer]
        numbers = (q.stride(0), step.block_table.stride(0), window or 0, self._scale, spec.soft_cap or 0.0)
        if step.has_single_rows:
            tiling = self._decode
            self._kernels.decode_kernel[(step.num_rows, spec.num_kv_heads, step.num_splits)](
                q, kv, out, step.block_table, step.starts, step.lengths, self._acc, self._stats, self._arrived,
                *numbers, step.num_splits, HAS_WINDOW=window is not None, TILE=tiling.tile, ROWS=tiling.rows,
                LEAST_SPLIT=max(_LEAST_SPLIT, tiling.tile), **self._constants,
                num_warps=tiling.num_warps, num_stages=tiling.num_stages, **launch,
            )  # fmt: skip
        for tiling in step.prefill:
            num_programs = step.num_tokens // (tiling.rows // self._group) + step.num_rows
            self._kernels.prefill_kernel[(num_programs, spec.num_kv_heads)](
                q, kv, out, step.block_table, step.starts, step.lengths, step.num_rows, *numbers,
                HAS_WINDOW=window is not None, TILE=tiling.tile, ROWS=tiling.rows, **self._constants,
                num_warps=tiling.num_warps, num_stages=tiling.num_stages, **launch,
            )  # fmt: skip
        return out


def _num_programs(device: torch.device) -> int:
    """Of the decode kernel, when rows are few."""
    import torch

    is_gpu = device.type == "cuda"
    return _PROGRAMS_PER_CORE * (torch.cuda.get_device_properties(device).multi_processor_count if is_gpu else 8)


def _decode_tiling(spec: AttentionSpec, group: int) -> _Tiling:
    """A matrix unit takes 16 rows at least."""
    is_wide = spec.head_dim > 128 or spec.dtype == "float32"
    return _Tiling(max(16, _power_of_two(group)), 32 if is_wide else 64, num_warps=4, num_stages=2 if is_wide else 3)


def _prefill_tiling(spec: AttentionSpec, group: int) -> _Tiling:
    if not spec.device.startswith("cuda"):
        return _Tiling(max(16, _power_of_two(group)), 16, num_warps=4, num_stages=1)
    if spec.dtype == "float32" or spec.head_dim > 128:
        return _Tiling(64, 32, num_warps=4, num_stages=1 if spec.dtype == "float32" else 2)
    return _Tiling(64, 128 if spec.head_dim <= 64 else 64, num_warps=4, num_stages=3)


def _long_prefill_tiling(spec: AttentionSpec, usual: _Tiling) -> _Tiling:
    """For contexts from _LONG_CONTEXT on. On an H100, 8,192 tokens of 28 heads of 128: 455 TFLOP/s, the usual 386."""
    is_wide = spec.head_dim > 128 or spec.dtype == "float32"
    if not spec.device.startswith("cuda") or is_wide or spec.head_dim <= 64:
        return usual
    return _Tiling(128, 64, num_warps=4, num_stages=3)


def _power_of_two(size: int) -> int:
    return max(16, 1 << math.ceil(math.log2(size)))


def make_triton_paged(context: AttentionContext) -> TritonPagedAttention:
    return TritonPagedAttention(context.block_size)


@hookimpl
def plugserve_attention_backends() -> Mapping[str, AttentionFactory]:
    return {"triton-paged": make_triton_paged}
