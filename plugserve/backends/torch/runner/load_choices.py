"""The choices of dtype and length when the torch runner loads a model, and the settings that they follow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from plugserve.backends.torch.runner.memory_plan import MemoryRequest
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.length_warnings import decoder_length_warning

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """The settings that the runner reads. dtype, device and max_model_len may be "auto"; None is
    automatic too (max_model_len: the model's, lowered to what fits; num_threads: torch's own choice)."""

    dtype: str
    device: str
    num_threads: int | None
    max_model_len: int | str | None
    model_max_len: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int | None
    memory: MemoryRequest
    max_num_drafts: int = 0
    enforce_eager: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    draft_model: str | None = None


def choose_dtype(
    name: str, config: Mapping[str, Any], default_for: Callable[[torch.dtype], torch.dtype]
) -> torch.dtype:
    """The dtype for --dtype; auto is the device's default_for the dtype that the checkpoint was saved in."""
    dtypes = {"half": torch.float16, "float16": torch.float16, "bfloat16": torch.bfloat16}
    dtypes |= {"float": torch.float32, "float32": torch.float32}
    if name != "auto":
        return dtypes[name]
    saved = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return default_for(dtypes.get(saved, torch.bfloat16))


def asked_length(settings: RunnerSettings) -> int:
    asked = settings.max_model_len
    return asked if isinstance(asked, int) else settings.model_max_len


def fit_length(settings: RunnerSettings, num_kv_tokens: int) -> int:
    """max_model_len such that one full-length sequence fits the KV cache.

    A length that the user gave must fit (ConfigError); the model's own is lowered with one log line.
    """
    asked = asked_length(settings)
    if warning := decoder_length_warning(asked, settings.model_max_len):
        log.warning("%s", warning)
    if asked <= num_kv_tokens:
        return asked
    if isinstance(settings.max_model_len, int):
        raise ConfigError(
            f"--max-model-len {asked} does not fit: the KV cache holds {num_kv_tokens} tokens; "
            f"lower it, use --max-model-len auto, or raise --kv-cache-memory"
        )
    write_line = log.info if settings.max_model_len == "auto" else log.warning
    write_line("max_model_len lowered from=%d to=%d: the KV cache holds no more tokens", asked, num_kv_tokens)
    return num_kv_tokens
