"""What a device's memory is taken by besides weights and KV: one DeviceMemory for the CPU, one for CUDA GPUs.

Constants were measured with torch 2.11 on SmolLM2 and Gemma 3 (CPU); docs/memory.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from msgspec.structs import replace

from plugserve.backends.torch.runner.cuda_graphs import row_buckets
from plugserve.backends.torch.runner.memory_plan import GIB, MemoryRequest
from plugserve.backends.torch.sampling.sampler import rows_at_once
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryPlace, MemoryUse
from plugserve.core.memory.machine import HostMemory, host_memory, process_memory

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.described_model import DescribedModel

_MIB = 1 << 20
_CPU_LIBRARIES_BYTES = 60 * _MIB  # of matrix products, read on first use, and pieces that the C library keeps
_CONTEXT_BYTES = 480 * _MIB  # a CUDA context, right after it is made
_KERNEL_BYTES = 128 * _MIB  # kernels are read when they first run
_FREE_SHARE = 0.03  # of a card
_HOPPER_WORKSPACE_BYTES = 32 * _MIB  # of cuBLAS, for each stream that computes
_WORKSPACE_BYTES = 9 * _MIB
_NUM_STREAMS = 3  # steps, warm-up and capture
_CUDA_HOST_BYTES = 1536 * _MIB  # CUDA's libraries in the process's own memory
_LOGIT_BYTES = 4  # float32
_CPU_BYTES_PER_LOGIT = 8  # of rows that are drawn at once: divided by temperatures, and probabilities
_GPU_BYTES_PER_LOGIT = 60  # the same, sorted with their ids, and in float64 for sums: top-p without top-k


@dataclass(frozen=True, slots=True)
class Budget:
    """A device's memory: the part that other processes hold, and the part that the engine may take."""

    title: str
    total_bytes: int
    other_bytes: int
    budget_bytes: int

    def place(self, name: str, items: Iterable[MemoryItem], loading_bytes: int = 0) -> MemoryPlace:
        """The ledger's part about it."""
        return MemoryPlace(
            name=name,
            title=self.title,
            total_bytes=self.total_bytes,
            other_bytes=self.other_bytes,
            budget_bytes=self.budget_bytes,
            items=tuple(items),
            loading_bytes=loading_bytes,
        )


class DeviceMemory(Protocol):
    """The rules of one device. Sizes are in bytes."""

    @property
    def place(self) -> str:
        """The name of its place in a ledger."""

    @property
    def can_offload(self) -> bool:
        """Weights can stay on the host instead."""

    def budget(self, request: MemoryRequest) -> Budget:
        """Before anything is loaded."""

    def free_bytes(self, request: MemoryRequest) -> int:
        """What the engine may still take now."""

    def kv_share(self, free_bytes: int, required_bytes: int) -> int:
        """Memory for KV blocks where the user set none; required_bytes hold one request of the longest length that the
        user set."""

    def base_item(self) -> MemoryItem:
        """What is there before weights."""

    def library_bytes(self) -> int:
        """What libraries take on the device once steps run."""

    def process_bytes(self) -> int:
        """The host memory of the engine's process, without weights."""

    def sampling_bytes(self, num_rows: int, vocab_size: int, dtype: torch.dtype) -> int:
        """Logits of num_rows and what drawing from them takes."""

    def captured_bytes(self, num_rows: int, described: DescribedModel) -> int:
        """Graphs of steps of up to num_rows tokens."""

    def measured(self, use: MemoryUse) -> MemoryUse:
        """use with the device's figures of now."""


def own_budget(host: HostMemory) -> Budget:
    """The host's: all that other processes leave."""
    own = process_memory().resident_bytes
    other = max(0, host.total_bytes - host.available_bytes - own)
    return Budget(f"{HOST} of this {host.limit}", host.total_bytes, other, host.total_bytes - other)


def _sampling_bytes(num_rows: int, vocab_size: int, dtype: torch.dtype, working: int) -> int:
    """Logits as the model gives them, in float32, and what the rows that are drawn at once work in."""
    raw = 0 if dtype is torch.float32 else dtype.itemsize
    num_drawn = min(num_rows, rows_at_once(vocab_size))
    return vocab_size * (num_rows * (raw + _LOGIT_BYTES) + num_drawn * working)


class CpuMemory:
    """Host memory. KV is touched as it is used, weights are copied."""

    place = HOST
    can_offload = False

    def budget(self, request: MemoryRequest) -> Budget:
        return own_budget(host_memory())

    def free_bytes(self, request: MemoryRequest) -> int:
        return host_memory().available_bytes

    def kv_share(self, free_bytes: int, required_bytes: int) -> int:
        """1 GiB or half of what is free, but room for one request if there is any."""
        return max(min(GIB, free_bytes // 2), min(required_bytes, free_bytes))

    def base_item(self) -> MemoryItem:
        return MemoryItem("process", self.process_bytes(), "interpreter, torch and its libraries")

    def library_bytes(self) -> int:
        return 0

    def process_bytes(self) -> int:
        return process_memory().resident_bytes + _CPU_LIBRARIES_BYTES

    def sampling_bytes(self, num_rows: int, vocab_size: int, dtype: torch.dtype) -> int:
        return _sampling_bytes(num_rows, vocab_size, dtype, _CPU_BYTES_PER_LOGIT)

    def captured_bytes(self, num_rows: int, described: DescribedModel) -> int:
        return 0

    def measured(self, use: MemoryUse) -> MemoryUse:
        return use


class CudaMemory:
    """A GPU's memory, of which --gpu-memory-utilization is this engine's, whatever other engines have of it; but no
    more than is free, less a little that stays so."""

    can_offload = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.place = str(device)

    def budget(self, request: MemoryRequest) -> Budget:
        """This process has a context by the time that it can ask."""
        free, total = torch.cuda.mem_get_info(self._device)
        other = max(0, total - free - _CONTEXT_BYTES)
        title = f"{self.place}, {torch.cuda.get_device_name(self._device)}"
        share = int(total * request.gpu_memory_utilization)
        return Budget(title, total, other, max(0, min(share, total - other - int(total * _FREE_SHARE))))

    def free_bytes(self, request: MemoryRequest) -> int:
        torch.cuda.empty_cache()  # what loading has freed is not in use
        free, total = torch.cuda.mem_get_info(self._device)
        own = torch.cuda.memory_reserved(self._device) + _CONTEXT_BYTES
        share = int(total * request.gpu_memory_utilization)
        return max(0, min(share - own, free - int(total * _FREE_SHARE)))

    def kv_share(self, free_bytes: int, required_bytes: int) -> int:
        return free_bytes

    def base_item(self) -> MemoryItem:
        return MemoryItem("CUDA context", _CONTEXT_BYTES, "the driver's, for this process")

    def library_bytes(self) -> int:
        is_hopper = torch.cuda.get_device_capability(self._device)[0] >= 9
        return _KERNEL_BYTES + _NUM_STREAMS * (_HOPPER_WORKSPACE_BYTES if is_hopper else _WORKSPACE_BYTES)

    def process_bytes(self) -> int:
        return max(process_memory().resident_bytes, _CUDA_HOST_BYTES)

    def sampling_bytes(self, num_rows: int, vocab_size: int, dtype: torch.dtype) -> int:
        return _sampling_bytes(num_rows, vocab_size, dtype, _GPU_BYTES_PER_LOGIT)

    def captured_bytes(self, num_rows: int, described: DescribedModel) -> int:
        """Each captured size keeps its logits; the rest of a step is shared, once in the graphs and once on the stream
        on which it was warmed up."""
        logits = (sum(row_buckets(num_rows)) + num_rows) * described.model.vocab_size
        return logits * described.dtype.itemsize + 2 * described.activation_bytes(num_rows)

    def measured(self, use: MemoryUse) -> MemoryUse:
        free, total = torch.cuda.mem_get_info(self._device)
        return replace(
            use,
            device_allocated_bytes=torch.cuda.memory_allocated(self._device),
            device_reserved_bytes=torch.cuda.memory_reserved(self._device),
            device_peak_reserved_bytes=torch.cuda.max_memory_reserved(self._device),
            device_free_bytes=free,
            device_total_bytes=total,
        )
