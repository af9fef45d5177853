"""Settings of speed and memory: device, KV cache, batch sizes."""

from __future__ import annotations

from plugserve.core.settings.setting_groups import PERFORMANCE
from plugserve.core.settings.setting_types import (
    COUNT_ACCEPTS,
    SIZE_ACCEPTS,
    BlockSize,
    Count,
    DeclaredSettings,
    Device,
    ModelLength,
    Number,
    OptionalCount,
    OptionalNumber,
    OptionalPositive,
    OptionalSize,
    Share,
    setting,
)


class PerformanceSettings(DeclaredSettings):
    """Speed and memory."""

    device: Device = setting(
        "auto",
        PERFORMANCE,
        "Where the model runs: auto takes a GPU if there is one.",
        "one of auto, cpu, cuda, cuda:N",
        metavar="DEVICE",
    )
    threads: OptionalCount = setting(
        None, PERFORMANCE, "CPU threads of an engine.", COUNT_ACCEPTS, metavar="N", shown_default="all cores"
    )
    max_model_len: ModelLength = setting(
        None,
        PERFORMANCE,
        "Longest context in tokens, also 16k; auto takes the largest that fits in memory.",
        f"{COUNT_ACCEPTS} or auto",
        metavar="N|auto",
        shown_default="the model's",
    )
    gpu_memory_utilization: Share = setting(
        0.90,
        PERFORMANCE,
        "Share of the GPU's memory for weights and KV cache.",
        "a number above 0 and at most 1",
        metavar="SHARE",
    )
    kv_cache_memory: OptionalSize = setting(
        None,
        PERFORMANCE,
        "Size of the KV cache, such as 1GiB, on any device.",
        SIZE_ACCEPTS,
        metavar="SIZE",
        shown_default="GPU: what is left; CPU: 1 GiB, or what --max-model-len takes",
    )
    block_size: BlockSize = setting(
        16, PERFORMANCE, "Tokens in one block of the KV cache.", "a power of two from 16 to 256", metavar="N"
    )
    num_gpu_blocks_override: OptionalCount = setting(
        None,
        PERFORMANCE,
        "Number of KV blocks, instead of as many as fit in memory (any device).",
        COUNT_ACCEPTS,
        metavar="N",
        shown_default="from memory",
    )
    max_num_seqs: Count = setting(256, PERFORMANCE, "Sequences that run at once.", COUNT_ACCEPTS, metavar="N")
    max_num_batched_tokens: OptionalCount = setting(
        None,
        PERFORMANCE,
        "Tokens that one step computes.",
        f"{COUNT_ACCEPTS} or auto",
        metavar="N",
        shown_default="auto: 256 on a CPU, 8192 on a GPU",
    )
    scheduler_delay_factor: Number = setting(
        0.0,
        PERFORMANCE,
        "Wait this many times the last prompt's latency before the next prompt.",
        "a number of at least 0",
        metavar="X",
    )
    max_itl_ms: OptionalPositive = setting(
        None,
        PERFORMANCE,
        "Target for the time between two tokens, in ms: prompts are computed in chunks that keep steps shorter.",
        "a number above 0",
        metavar="MS",
        shown_default="no target",
    )
    swap_space: OptionalNumber = setting(
        None,
        PERFORMANCE,
        "GiB of host memory for KV blocks of preempted sequences and those that the prefix cache evicts, allocated on "
        "demand. 0: preempted sequences are computed again.",
        "a number of at least 0, or auto",
        metavar="GIB",
        shown_default="auto: 4 on a GPU (at most half of the free memory), 0 on a CPU",
    )
    cpu_offload_gb: Number = setting(
        0.0,
        PERFORMANCE,
        "GiB of the weights that stay in host memory and are copied to the GPU in every step.",
        "a number of at least 0",
        metavar="GIB",
    )
    enforce_eager: bool = setting(False, PERFORMANCE, "Don't capture CUDA graphs.", "true or false")
