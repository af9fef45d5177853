"""What an encoder takes, computed before it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch

from plugserve.backends.torch.runner.device_memory import own_budget
from plugserve.backends.torch.runner.devices import DeviceKind
from plugserve.backends.torch.runner.memory_plan import MemoryRequest
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger
from plugserve.core.memory.machine import host_memory

_WHOLE_DEVICE = MemoryRequest(kv_cache_bytes=None, num_blocks=None, gpu_memory_utilization=1.0)


def encoder_ledger(
    config: Mapping[str, Any],
    shapes: Iterable[tuple[int, ...]],
    dtype: torch.dtype,
    kind: DeviceKind,
    num_tokens: int,
    max_length: int,
) -> MemoryLedger:
    """shapes are those of its tensors; a batch has up to num_tokens tokens, padding included."""
    hidden = int(config.get("hidden_size") or config.get("dim") or 768)
    inner = int(config.get("intermediate_size") or config.get("hidden_dim") or 4 * hidden)
    weights = sum(map(prod, shapes)) * dtype.itemsize
    activations = num_tokens * (6 * hidden + 2 * inner) * dtype.itemsize
    budget = kind.memory.budget(_WHOLE_DEVICE)
    items = [
        kind.memory.base_item(),
        MemoryItem("weights", weights, f"as {str(dtype).removeprefix('torch.')}"),
        MemoryItem("activations", activations, f"batches of {num_tokens} tokens"),
    ]
    if kind.memory.library_bytes():
        items.append(MemoryItem("libraries", kind.memory.library_bytes(), "cuBLAS' work space, kernels"))
    places = [budget.place(kind.memory.place, items)]
    if kind.memory.place != HOST:
        process = MemoryItem("process", kind.memory.process_bytes(), "interpreter, torch and CUDA's libraries")
        places.append(own_budget(host_memory()).place(HOST, [process]))
    return MemoryLedger(
        device=str(kind.device),
        dtype=str(dtype).removeprefix("torch."),
        places=tuple(places),
        kv_bytes_per_token=0,
        num_kv_tokens=0,
        max_model_len=max_length,
        asked_model_len=None,
        max_num_seqs=num_tokens,
        max_num_batched_tokens=num_tokens,
    )
