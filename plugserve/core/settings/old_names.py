"""Other names of plugserve's settings, which vLLM or older versions use. All of them log a warning.

Settings that only vLLM has are in vllm_names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RETIRED_PLUGINS: Mapping[str, str] = {"decoders": "torch", "weight-formats": "torch"}
"""Names of plugins that were merged into another one; --no-plugin accepts them with a warning."""


@dataclass(frozen=True, slots=True)
class OldName:
    """Another server's name for a setting. inverted: its boolean has the opposite meaning."""

    new: str
    inverted: bool = False


OLD_NAMES: Mapping[str, OldName] = {
    "kv_cache_memory_bytes": OldName("kv_cache_memory"),
    "otlp_endpoint": OldName("otlp_traces_endpoint"),
    "enable_log_requests": OldName("disable_log_requests", inverted=True),
    "api_server_count": OldName("api_workers"),
    "scheduling_policy": OldName("scheduler"),
    "device_memory_utilization": OldName("gpu_memory_utilization"),
    "uvicorn_log_level": OldName("log_level"),
    "spec_model": OldName("speculative_model"),
    "spec_tokens": OldName("num_speculative_tokens"),
    "max_num_queued_reqs": OldName("max_num_queued_requests"),
    "chat_template_text_format": OldName("chat_template_content_format"),
    "tp": OldName("tensor_parallel_size"),
    "pp": OldName("pipeline_parallel_size"),
    "gpu_mem_util": OldName("gpu_memory_utilization"),
    "delay_factor": OldName("scheduler_delay_factor"),
}
