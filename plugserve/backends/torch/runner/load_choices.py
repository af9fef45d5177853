"""What the torch runner decides when it loads a model: device, dtype, length. Knows nothing of steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plugserve.backends.torch.runner.memory_plan import MemoryRequest
from plugserve.core.contracts.attention import AttentionSpec
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.contracts.runner import LengthRule
from plugserve.core.errors import ConfigError, ModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What the runner needs to know from the settings. dtype, device and max_model_len may be "auto"; None is
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


def choose_device(name: str) -> torch.device:
    """The device for --device; auto takes the first GPU that torch can use, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is not a device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds no CUDA device here; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} is not supported; use auto, cpu or cuda")
    return device


def choose_dtype(name: str, device: torch.device, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype for --dtype. auto is the checkpoint's own on a GPU and float32 on a CPU, where greedy output then
    doesn't depend on what else is in the batch."""
    dtypes = {"half": torch.float16, "float16": torch.float16, "bfloat16": torch.bfloat16}
    dtypes |= {"float": torch.float32, "float32": torch.float32}
    if name != "auto":
        return dtypes[name]
    if device.type == "cpu":
        return torch.float32
    saved = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    dtype = dtypes.get(saved, torch.bfloat16)
    return torch.bfloat16 if dtype is torch.float32 else dtype


def attention_of(spec: DecoderSpec, dtype: torch.dtype, device: torch.device) -> AttentionSpec:
    return AttentionSpec(
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        windows=spec.windows,
        soft_cap=spec.attention_soft_cap,
    )


def length_rule_of(spec: DecoderSpec) -> LengthRule | None:
    """Raises ModelError for layers that differ in where a sequence counts as long."""
    rules = {
        LengthRule(border, rope.kind == "longrope") for rope in spec.ropes if (border := rope.length_border) is not None
    }
    if len(rules) > 1:
        raise ModelError(f"{spec.architecture}: layers with different length-dependent RoPE are not supported")
    return rules.pop() if rules else None


def asked_length(settings: RunnerSettings) -> int:
    asked = settings.max_model_len
    return asked if isinstance(asked, int) else settings.model_max_len


def fit_length(settings: RunnerSettings, num_kv_tokens: int) -> int:
    """max_model_len such that one full-length sequence fits the KV cache.

    A length that the user gave must fit (ConfigError); the model's own is lowered with one log line.
    """
    asked = asked_length(settings)
    if asked <= num_kv_tokens:
        return asked
    if isinstance(settings.max_model_len, int):
        raise ConfigError(
            f"--max-model-len {asked} does not fit: the KV cache holds {num_kv_tokens} tokens; "
            f"lower it, use --max-model-len auto, or raise --kv-cache-memory"
        )
    say = log.info if settings.max_model_len == "auto" else log.warning
    say("max_model_len lowered from=%d to=%d: the KV cache holds no more tokens", asked, num_kv_tokens)
    return num_kv_tokens


def zeros_on_demand(shape: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A zeroed tensor; on a CPU its pages are only taken from the system when they are first written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
