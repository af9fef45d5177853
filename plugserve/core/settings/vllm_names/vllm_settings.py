"""All settings of vLLM that plugserve has no setting for, by name; vLLM's short flags; and its environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from plugserve.core.settings.vllm_names.not_supported import NOT_SUPPORTED
from plugserve.core.settings.vllm_names.translations import TRANSLATIONS
from plugserve.core.settings.vllm_names.vllm_name import VllmName, ignore, refuse
from plugserve.core.settings.vllm_names.without_effect import WITHOUT_EFFECT

VLLM_SETTINGS: Final[Mapping[str, VllmName]] = {
    **{name: entry for reason in WITHOUT_EFFECT for name, entry in reason.entries(ignore(reason))},
    **{name: entry for reason in NOT_SUPPORTED for name, entry in reason.entries(refuse(reason))},
    **{name: entry for name, (entry, _) in TRANSLATIONS.items()},
}

SHORT_FLAGS: Final[Mapping[str, str]] = {
    "-tp": "tensor_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-dp": "data_parallel_size",
    "-dpn": "data_parallel_rank",
    "-dpr": "data_parallel_start_rank",
    "-dpl": "data_parallel_size_local",
    "-dpa": "data_parallel_address",
    "-dpp": "data_parallel_rpc_port",
    "-dpb": "data_parallel_backend",
    "-dph": "data_parallel_hybrid_lb",
    "-dpe": "data_parallel_external_lb",
    "-dpm": "data_parallel_multi_port_external_lb",
    "-dcp": "decode_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "-ep": "enable_expert_parallel",
    "-n": "nnodes",
    "-r": "node_rank",
    "-asc": "api_workers",
    "-q": "quantization",
    "-sc": "speculative_config",
    "-cc": "compilation_config",
    "-O": "compilation_config",
    "-ac": "attention_config",
    "-dc": "diffusion_config",
}
"""vLLM's short flags; plugserve has none of its own but -h."""

VLLM_VARIABLES: Final[Mapping[str, str]] = {"VLLM_API_KEY": "api_key", "VLLM_LOGGING_LEVEL": "log_level"}
"""Environment variables of vLLM that are taken, with the setting; they count less than any other place."""
