"""What a model takes on its device and on the host, computed before it is loaded: docs/memory.md explains the items.

Sizes follow from the config, the settings and the headers of files; tensors are only described, on torch's meta device.
The loader plans the KV cache with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import ceil

from plugserve.backends.torch.models.streamed_parts import NUM_BUFFERS
from plugserve.backends.torch.runner.described_model import DescribedModel, draft_sizes
from plugserve.backends.torch.runner.device_memory import own_budget
from plugserve.backends.torch.runner.devices import DeviceKind
from plugserve.backends.torch.runner.load_choices import RunnerSettings, asked_length
from plugserve.backends.torch.runner.memory_plan import host_tier_bytes, plan_blocks
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace
from plugserve.core.memory.machine import host_memory

_UNPACKING_BYTES = 24 << 20  # tensors that are converted ahead of the one that is copied
_UNBOUNDED = 1 << 62  # bytes
_STATE_WORDS = 16  # a row's numbers beside its tokens and blocks


class MemoryEstimate:
    """The memory of one model with its settings, on one device."""

    def __init__(
        self, described: DescribedModel, sources: ModelSources, settings: RunnerSettings, kind: DeviceKind
    ) -> None:
        self._described = described
        self._sources = sources
        self._settings = settings
        self._kind = kind
        self._num_tokens = settings.max_num_batched_tokens or kind.default_num_batched_tokens
        self._draft = draft_sizes(described, sources, settings.draft_model)

    def ledger(self) -> MemoryLedger:
        settings, described = self._settings, self._described
        budget = self._kind.memory.budget(settings.memory)
        before = [self._kind.memory.base_item(), *self._weight_items, *self._lora_items()]
        after = [*self.step_items, *(self._host_items() if self._is_on_host else [])]
        free = budget.budget_bytes - sum(item.size_bytes for item in (*before, *after))
        free -= self._kind.num_padding_blocks * self.bytes_per_block
        num_blocks = self._num_blocks(max(0, free))
        items = (*before, self._kv_item(num_blocks), *after)
        place = budget.place(self._kind.memory.place, items, self._loading_bytes if self._is_on_host else 0)
        num_kv_tokens, length = num_blocks * settings.block_size, asked_length(settings)
        return MemoryLedger(
            device=described.spec.device,
            dtype=described.spec.dtype,
            places=(place,) if self._is_on_host else (place, self._host_place()),
            kv_bytes_per_token=self.bytes_per_block // settings.block_size,
            num_kv_tokens=num_kv_tokens,
            max_model_len=min(length, num_kv_tokens),
            asked_model_len=length if isinstance(settings.max_model_len, int) else None,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=self._num_tokens,
        )

    @property
    def _is_on_host(self) -> bool:
        return self._kind.memory.place == HOST

    # ---- the KV cache

    @property
    def bytes_per_block(self) -> int:
        """With a draft model's share."""
        return self._described.layout.bytes_per_block + self._draft.bytes_per_block

    def kv_share(self, free_bytes: int) -> int:
        """Memory for KV blocks where the user set none, of what is free once everything else is there."""
        return self._kind.memory.kv_share(max(0, free_bytes), self._required_kv_bytes)

    @property
    def _required_kv_bytes(self) -> int:
        """Blocks for one request of the length that the user set; one block where none is set."""
        settings = self._settings
        length = settings.max_model_len if isinstance(settings.max_model_len, int) else 1
        return ceil(length / settings.block_size) * self.bytes_per_block

    def _num_blocks(self, free_bytes: int) -> int:
        """As the loader plans, but never less than is required: what is missing then shows in the ledger."""
        request = self._settings.memory
        if request.kv_cache_bytes is not None and request.kv_cache_bytes < self.bytes_per_block:
            return 0
        return plan_blocks(
            request, self.bytes_per_block, lambda: max(self._required_kv_bytes, self.kv_share(free_bytes))
        )

    def _kv_item(self, num_blocks: int) -> MemoryItem:
        num_blocks += self._kind.num_padding_blocks
        size = self._settings.block_size
        detail = f"{num_blocks} blocks of {size} tokens, {self.bytes_per_block // size} bytes a token"
        return MemoryItem("KV cache", num_blocks * self.bytes_per_block, detail)

    # ---- weights

    @cached_property
    def _offloaded(self) -> list[int]:
        """The bytes of each part of a layer that stays on the host."""
        wanted = self._settings.memory.offload_bytes if self._kind.memory.can_offload else 0
        return self._described.offloaded_parts(wanted)

    @property
    def _weight_items(self) -> list[MemoryItem]:
        stored, dtype = self._sources.stored(), self._described.spec.dtype
        detail = f"as {dtype}; {stored} in files" if stored.num_files else f"as {dtype}"
        items = [MemoryItem("weights", self._described.weight_bytes - sum(self._offloaded), detail)]
        if self._offloaded:
            buffers = min(NUM_BUFFERS, len(self._offloaded)) * max(self._offloaded)
            items.append(MemoryItem("buffers for offloaded weights", buffers, "two parts of layers"))
        if self._draft.weight_bytes:
            items.append(MemoryItem("draft model", self._draft.weight_bytes, f"as {dtype}"))
        return items

    @property
    def _loading_bytes(self) -> int:
        """The process while weights are read: mapped files, and tensors on their way."""
        stored = self._sources.stored()
        on_the_way = stored.largest_file_bytes + _UNPACKING_BYTES
        if not stored.num_files:  # made up in float32
            on_the_way = 4 * self._described.largest_tensor
        weights = sum(item.size_bytes for item in self._weight_items) if self._is_on_host else sum(self._offloaded)
        return self._kind.memory.process_bytes() + weights + on_the_way

    # ---- beside weights and KV

    @cached_property
    def step_items(self) -> list[MemoryItem]:
        """What is allocated after weights and KV: rows' state, and what steps work in."""
        memory, num_rows, num_tokens = self._kind.memory, self._settings.max_num_seqs, self._num_tokens
        vocab_size, length = self._described.model.vocab_size, asked_length(self._settings)
        logits = memory.sampling_bytes(num_rows, vocab_size, self._described.dtype)
        work = self._attention_bytes - (logits if self._is_on_host else 0)  # a CPU's is given back in between
        items = [
            MemoryItem("row state, RoPE", self._state_bytes, f"{num_rows} rows of {length} tokens"),
            MemoryItem("activations", self._described.activation_bytes(num_tokens), f"steps of {num_tokens} tokens"),
            MemoryItem("logits, sampling", logits, f"{num_rows} rows of {vocab_size} logits"),
            MemoryItem("attention", work, "work space beyond that of sampling" if self._is_on_host else "work space"),
            MemoryItem("CUDA graphs", self._captured_bytes, f"steps of up to {num_rows} rows"),
            MemoryItem("libraries", memory.library_bytes(), "cuBLAS' work space, kernels"),
        ]
        return [item for item in items if item.size_bytes > 0]

    @property
    def later_bytes(self) -> int:
        """What will be allocated after weights and KV, on the device."""
        return sum(item.size_bytes for item in self.step_items)

    @property
    def _state_bytes(self) -> int:
        settings, length = self._settings, asked_length(self._settings)
        num_words = _STATE_WORDS + length + 1 + ceil(length / settings.block_size)
        return 4 * (settings.max_num_seqs + 1) * num_words + self._described.rope_bytes(length)

    @property
    def _attention_bytes(self) -> int:
        """As the attention backend says, if it does."""
        work_bytes = getattr(self._described.attention, "work_bytes", None)
        if work_bytes is None:
            return 0
        return int(work_bytes(self._num_tokens, self._settings.max_num_seqs, self._longest))

    @property
    def _longest(self) -> int:
        """Tokens of the longest sequence that can have blocks."""
        most = self._num_blocks(_UNBOUNDED) * self._settings.block_size
        return min(asked_length(self._settings), most)

    @property
    def _captured_bytes(self) -> int:
        if self._settings.enforce_eager or not self._described.attention.graph_safe:
            return 0
        models = [self._described, *([self._draft.described] if self._draft.described else [])]
        return sum(self._kind.memory.captured_bytes(self._settings.max_num_seqs, model) for model in models)

    def _lora_items(self) -> list[MemoryItem]:
        settings = self._settings
        if self._sources.make_lora_manager is None:
            return []
        size = self._described.lora_bytes(settings.max_loras, settings.max_lora_rank)
        return [MemoryItem("LoRA slots", size, f"{settings.max_loras} adapters of rank {settings.max_lora_rank}")]

    # ---- the host, for a device beside it

    def _host_place(self) -> MemoryPlace:
        budget = own_budget(host_memory())
        items = [MemoryItem("process", self._kind.memory.process_bytes(), "interpreter, torch and CUDA's libraries")]
        if self._offloaded:
            items.append(MemoryItem("offloaded weights", sum(self._offloaded), "page-locked"))
        return budget.place(HOST, (*items, *self._host_items()), self._loading_bytes)

    def _host_items(self) -> Sequence[MemoryItem]:
        size = host_tier_bytes(self._settings.memory, self._kind.default_host_bytes)
        return [MemoryItem("KV blocks in host memory", size, "--swap-space, allocated on demand")] if size else []
