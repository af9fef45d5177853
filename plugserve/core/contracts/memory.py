"""The memory ledger: what a model takes, by place and item, before it is loaded; and what an engine uses now."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

HOST = "host memory"
"""The name of the place that every ledger has; a device is called as torch calls it ("cuda:0")."""


class MemoryItem(msgspec.Struct, frozen=True):
    """One line of a ledger; detail explains the number in half a line."""

    name: str
    size_bytes: int
    detail: str = ""


class MemoryPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Host memory or a device. other_bytes are held by other processes, budget_bytes is what the engine may take.

    loading_bytes is the most that is resident while weights are read. It includes pages of mapped files, which the
    system takes back when memory is short, so that they decide nothing about what fits.
    """

    name: str
    title: str
    total_bytes: int
    other_bytes: int
    budget_bytes: int
    items: tuple[MemoryItem, ...]
    loading_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """The sum of the items."""
        return sum(item.size_bytes for item in self.items)

    @property
    def peak_bytes(self) -> int:
        """The most that will be resident, with the KV cache filled."""
        return max(self.needed_bytes, self.loading_bytes)

    @property
    def missing_bytes(self) -> int:
        return max(0, self.needed_bytes - self.budget_bytes)


class MemoryLedger(msgspec.Struct, frozen=True, kw_only=True):
    """A model's memory as its settings ask for it. kv_bytes_per_token counts all layers, and a draft model's; it is 0
    for encoders, which have no cache.

    The KV cache holds num_kv_tokens; max_model_len is the longest request that is served, and asked_model_len the one
    that the user set, None for the model's own or the largest that fits.
    """

    device: str
    dtype: str
    places: tuple[MemoryPlace, ...]
    kv_bytes_per_token: int
    num_kv_tokens: int
    max_model_len: int
    asked_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int

    @property
    def fits(self) -> bool:
        return self.has_room_for_length and not any(place.missing_bytes for place in self.places)

    @property
    def has_room_for_length(self) -> bool:
        """False: one request of the length that the user set does not fit into the KV cache."""
        return not self.kv_bytes_per_token or self.num_kv_tokens >= (self.asked_model_len or 1)

    @property
    def num_full_requests(self) -> float:
        """Requests of the longest length that the KV cache holds at once."""
        return self.num_kv_tokens / self.max_model_len if self.max_model_len else 0.0

    def place(self, name: str) -> MemoryPlace:
        """Raises LookupError for a place that the ledger doesn't have."""
        for one in self.places:
            if one.name == name:
                return one
        raise LookupError(f"the ledger has no {name}")


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's memory at one moment, in bytes; the peaks count from its process's start. device_* are 0 on a CPU:
    what torch's allocator has handed out and holds, the most that it held, and what all processes leave free."""

    resident_bytes: int = 0
    peak_resident_bytes: int = 0
    device_allocated_bytes: int = 0
    device_reserved_bytes: int = 0
    device_peak_reserved_bytes: int = 0
    device_free_bytes: int = 0
    device_total_bytes: int = 0


@runtime_checkable
class MemoryEstimator(Protocol):
    """What a ModelRunner or EncoderRunner may offer besides: its memory, predicted before load, measured afterwards."""

    def estimate_memory(self) -> MemoryLedger:
        """Before load, from configs and file headers alone. Takes no memory worth mentioning."""

    def measure_memory(self) -> MemoryUse:
        """Now, without waiting for the device."""
