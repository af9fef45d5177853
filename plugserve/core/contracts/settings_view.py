"""The settings that plugins may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

Options = TypeVar("Options", bound="BaseModel")


@dataclass(frozen=True, slots=True, repr=False)
class SettingsView:
    """The declared settings of a process, read-only, as docs/configuration.md describes each. Keys and other secrets
    are not among them. Reading any other setting raises AttributeError.

    plugin_tables are the given options by plugin: read them with plugin_options. changed_names are the settings that
    differ from their defaults.
    """

    model: tuple[str, ...]
    served_model_name: tuple[str, ...]
    dtype: str
    load_format: str
    seed: int | None
    revision: str | None
    download_dir: str | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    device: str
    threads: int | None
    max_model_len: int | str | None
    gpu_memory_utilization: float
    kv_cache_memory: int | None
    block_size: int
    num_gpu_blocks_override: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    scheduler_delay_factor: float
    max_itl_ms: float | None
    swap_space: float | None
    cpu_offload_gb: float
    enforce_eager: bool
    enable_prefix_caching: bool
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    enable_auto_tool_choice: bool
    tool_call_parser: str | None
    reasoning_parser: str | None
    speculative_model: str | None
    num_speculative_tokens: int
    adaptive_speculation: bool
    scheduler: str
    attention: str
    runner: str
    host: str
    port: int
    api_workers: int
    shutdown_timeout: float
    disable_log_requests: bool
    log_level: str
    max_logprobs: int
    max_num_queued_requests: int | None
    request_timeout: float | None
    max_body_size: int
    max_body_values: int
    max_prompt_tokens: int | None
    plugin_tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changed_names: frozenset[str] = frozenset()

    def plugin_options(self, plugin: str, model: type[Options]) -> Options:
        """The validated options of one plugin."""
        return model.model_validate(self.plugin_tables.get(plugin, {}))

    def __repr__(self) -> str:
        """The settings that differ from their defaults."""
        changed = (f"{name}={getattr(self, name)!r}" for name in readable_settings() if name in self.changed_names)
        return f"SettingsView({', '.join(changed)})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):
                raise AttributeError(name)
            raise AttributeError(
                f"plugins can't read the setting {name!r}; they can read {', '.join(readable_settings())}"
            )


def readable_settings() -> tuple[str, ...]:
    """The names of the settings in a SettingsView."""
    return tuple(one.name for one in fields(SettingsView) if one.name not in ("plugin_tables", "changed_names"))
