"""Reports of an engine: facts after loading, and counters while it runs."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, Protocol, runtime_checkable

import msgspec

from plugserve.core.contracts.memory import MemoryUse
from plugserve.core.contracts.runner import RunnerInfo

STEP_TOKEN_BOUNDS: Final = (1.0, 8.0, *(float(2**power) for power in range(4, 15)))
"""Upper bounds of EngineStats.num_steps_by_tokens, whose last entry has none; vLLM's."""


class EngineStats(msgspec.Struct, kw_only=True):
    """A snapshot of the engine. Counters count from the engine process's start.

    num_swap_preemptions of num_preemptions moved what was computed to host memory (num_swapped_out_blocks blocks that
    weren't there yet; num_swapped_in_blocks came back), the others recompute.
    num_prefix_hit_tokens counts those of the host tier (num_prefix_hit_tokens_host) too; num_host_bytes_out were copied
    to the host, num_host_bytes_in back. num_drafts counts verifications (an entry of a step with drafts);
    num_accepted_per_position[i] is how often the draft at position i, counted from 0, was accepted; num_draft_errors in
    how many steps the draft proposer failed. num_steps_by_tokens[i] counts the steps of a size (prompt and generated
    tokens) up to STEP_TOKEN_BOUNDS[i] and above the bound before; num_step_tokens are those of all steps.
    adapters_running and adapters_waiting are names of LoRA adapters with such sequences. plugin_seconds, plugin_calls,
    plugin_errors and plugin_quarantines are keyed by plugin and call of its strategy: "fcfs schedule"."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_preemptions: int = 0
    num_swap_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_steps: int = 0
    num_steps_by_tokens: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_TOKEN_BOUNDS) + 1))
    num_step_tokens: int = 0
    num_integrity_checks: int = 0
    num_integrity_errors: int = 0
    num_prefix_queried_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_prefix_hit_tokens_host: int = 0
    num_host_blocks: int = 0
    num_used_host_blocks: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_host_bytes_out: int = 0
    num_host_bytes_in: int = 0
    num_plan_errors: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_accepted_per_position: list[int] = []
    num_draft_errors: int = 0
    num_adapters: int = 0
    num_adapter_slots_in_use: int = 0
    num_adapter_swaps: int = 0
    num_adapters_in_memory: int = 0
    num_adapters_dropped: int = 0
    num_requests_waiting_for_adapter: int = 0
    num_adapter_slots: int = 0
    adapters_running: list[str] = []
    adapters_waiting: list[str] = []
    memory: MemoryUse = MemoryUse()
    plugin_seconds: dict[str, float] = {}
    plugin_calls: dict[str, int] = {}
    plugin_errors: dict[str, int] = {}
    plugin_quarantines: dict[str, int] = {}

    def note_step(self, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """A step was collected. One whose results were all dropped has no size."""
        self.num_steps += 1
        size = num_prompt_tokens + num_generated_tokens
        if size > 0:
            self.num_step_tokens += size
            self.num_steps_by_tokens[bisect_left(STEP_TOKEN_BOUNDS, size)] += 1

    def copy(self) -> EngineStats:
        """The counts as they are now."""
        return msgspec.convert(msgspec.to_builtins(self), EngineStats)


class EngineInfo(RunnerInfo, frozen=True, kw_only=True):
    """An engine's facts once its model is loaded: its runner's features, the seconds from process start, and the
    plugin in each slot. prefix_salt is the model's part of the salt of block hashes; "" without a prefix cache: then
    prompts need not be hashed."""

    load_seconds: float
    slots: dict[str, str] = {}
    prefix_salt: str = ""


@runtime_checkable
class EngineHandle(Protocol):
    """An engine as plugins see it, in a server worker (register_routes) or in the engine process (engine_started)."""

    model: str
    info: EngineInfo

    def stats(self) -> EngineStats:
        """The newest known snapshot; does not wait."""
