"""The native backend's runner: core's HostRunner, and its memory predicted before loading."""

from __future__ import annotations

from plugserve.backends.cpu.gguf_codes import READERS
from plugserve.backends.cpu.model_weights import parameter_shapes
from plugserve.backends.cpu.native_forward import NativeForward
from plugserve.backends.cpu.native_settings import GIB
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace, MemoryUse
from plugserve.core.memory.machine import available_memory_bytes, host_memory, process_memory
from plugserve.core.memory.process_use import process_use
from plugserve.core.model_files.stored_weights import StoredWeights
from plugserve.core.rows.host_runner import HostRunner

_FEWEST_BITS = {"none": 16.0, "int8": 8.5, "int4": 5.0}  # a weight, with its group's share of scales
_BITS = {"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 8.5, "Q5_1": 9.0, "Q8_0": 8.5, "Q4_K": 5.0, "Q5_K": 9.0, "Q6_K": 9.0}
_FILE_BITS = {"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}
_PROCESS_BYTES = 30 << 20  # what is imported later, and what the C library keeps
_UNPACKING_BYTES = 100 << 20  # tensors on their way


class NativeRunner(HostRunner):
    """stored are the model's files; quantization is that of the options."""

    def __init__(self, forward: NativeForward, num_rows: int, stored: StoredWeights, quantization: str) -> None:
        super().__init__(forward, num_rows)
        self._native = forward
        self._stored = stored
        self._quantization = quantization

    def measure_memory(self) -> MemoryUse:
        return process_use()

    def estimate_memory(self) -> MemoryLedger:
        settings = self._native.settings
        machine, own = host_memory(), process_memory().resident_bytes
        others = max(0, machine.total_bytes - machine.available_bytes - own)
        block_bytes = self._native.bytes_per_block()
        weights = self._weight_bytes()
        before = [
            MemoryItem("process", own + _PROCESS_BYTES, "interpreter and libraries"),
            MemoryItem("weights", weights, f"packed; {self._stored} in files" if self._stored.num_files else "packed"),
        ]
        after = self._step_items()
        taken = sum(item.size_bytes for item in (*before, *after))
        num_blocks = self._num_blocks(block_bytes, max(0, machine.total_bytes - others - taken))
        detail = (
            f"{num_blocks} blocks of {settings.block_size} tokens, {block_bytes // settings.block_size} bytes a token"
        )
        items = (*before, MemoryItem("KV cache", num_blocks * block_bytes, detail), *after)
        place = MemoryPlace(
            name=HOST,
            title=f"{HOST} of this {machine.limit}",
            total_bytes=machine.total_bytes,
            other_bytes=others,
            budget_bytes=machine.total_bytes - others,
            items=items,
            loading_bytes=own + weights + self._stored.largest_file_bytes + _UNPACKING_BYTES,
        )
        num_kv_tokens, length = num_blocks * settings.block_size, settings.asked_length
        return MemoryLedger(
            device="cpu",
            dtype="bfloat16",
            places=(place,),
            kv_bytes_per_token=block_bytes // settings.block_size,
            num_kv_tokens=num_kv_tokens,
            max_model_len=min(length, num_kv_tokens),
            asked_model_len=length if isinstance(settings.max_model_len, int) else None,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.step_tokens,
        )

    def _num_blocks(self, block_bytes: int, free_bytes: int) -> int:
        """As the loader plans, but never less than is required: what is missing then shows in the ledger."""
        settings = self._native.settings
        if settings.num_blocks is not None:
            return settings.num_blocks
        if settings.kv_cache_memory is not None:
            return settings.kv_cache_memory // block_bytes
        length = settings.max_model_len if isinstance(settings.max_model_len, int) else 1
        required = -(-length // settings.block_size) * block_bytes
        return max(required, min(GIB, free_bytes // 2)) // block_bytes

    def _weight_bytes(self) -> int:
        """By the types in the files, where these are kept."""
        types = self._stored.bytes_by_type
        if self._quantization == "none" and any(name in READERS for name in types):
            known = sum(types[name] * _BITS[name] / _FILE_BITS[name] for name in types if name in READERS)
            return int(known + sum(2 * size for name, size in types.items() if name not in READERS))
        bits = _FEWEST_BITS[self._quantization]
        sizes = (shape[0] * shape[-1] for shape in parameter_shapes(self._native.spec).values() if len(shape) == 2)
        return int(sum(sizes) * bits / 8)

    def _step_items(self) -> list[MemoryItem]:
        settings, spec = self._native.settings, self._native.spec
        tokens, rows, length = settings.step_tokens, settings.max_num_seqs, settings.asked_length
        inner = max(spec.intermediate_size, spec.hidden_size, spec.query_size)
        floats = 3 * spec.hidden_size + 2 * spec.query_size + 2 * spec.kv_size + 2 * spec.intermediate_size
        row_state = 4 * rows * (length + 16) + 4 * length * spec.head_dim
        items = [
            MemoryItem("row state, RoPE", row_state, f"{rows} rows of {length} tokens"),
            MemoryItem("activations", tokens * (4 * floats + 4 * inner), f"steps of {tokens} tokens"),
            MemoryItem("logits", 4 * rows * spec.vocab_size, f"{rows} rows of {spec.vocab_size} logits"),
        ]
        swapped = int(min((settings.swap_space or 0) * GIB, available_memory_bytes()))
        if swapped:
            items.append(MemoryItem("KV blocks in host memory", swapped, "--swap-space, allocated on demand"))
        return items
