"""The memory that a model takes: estimated from its files before it is loaded, measured from its process afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ModelError
from plugserve.core.machine import available_memory_bytes
from plugserve.core.model_files.architectures import describe
from plugserve.core.model_files.model_source import ModelSource, read_config
from plugserve.core.settings.settings import Settings

GIB: Final = 1 << 30
_CPU_PROCESS_BYTES: Final = 320 << 20  # interpreter, torch, buffers of a step
_GPU_PROCESS_BYTES: Final = GIB  # the CUDA context, libraries and captured graphs on the device
_WEIGHT_FILES: Final = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth", "*.distcp")
_NVIDIA_SMI_S: Final = 10.0


def uses_gpu(settings: Settings) -> bool:
    """Whether models run on a GPU, as --device and the machine say."""
    if settings.device == "auto":
        return os.path.exists("/dev/nvidiactl")
    return settings.device != "cpu"


def free_memory_bytes(settings: Settings) -> int:
    """What models may take together where --model-memory-budget is not given: the free memory of the device."""
    if not uses_gpu(settings):
        return available_memory_bytes()
    total, free = gpu_memory_bytes(settings.device)
    return max(0, free - int(total * (1 - settings.gpu_memory_utilization)))


def gpu_memory_bytes(device: str) -> tuple[int, int]:
    """Total and free memory of a GPU as nvidia-smi shows them; (0, 0) where it can't be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0, 0
    query = [program, "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(
            query, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True
        ).stdout.splitlines()
        index = int(device.partition(":")[2] or 0)
        total, free = (int(field) << 20 for field in lines[index].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0, 0
    return total, free


def predict_bytes(settings: Settings, source: ModelSource) -> int:
    """The memory that a model will take with settings, which are its own."""
    if uses_gpu(settings):
        total, _ = gpu_memory_bytes(settings.device)
        if settings.kv_cache_memory is None:
            return int(total * settings.gpu_memory_utilization)
        return _weight_bytes(source, 2) + settings.kv_cache_memory + _GPU_PROCESS_BYTES
    width = 2 if settings.dtype in ("float16", "bfloat16") else 4
    return _weight_bytes(source, width) + _kv_bytes(settings) + _CPU_PROCESS_BYTES


def _weight_bytes(source: ModelSource, width: int) -> int:
    """Weights of width bytes each, as the engine holds them."""
    try:
        spec = describe(read_config(source))
    except ModelError:
        spec = None
    if isinstance(spec, DecoderSpec):
        return spec.num_parameters * width
    files = [source.path] if source.path.is_file() else [p for kind in _WEIGHT_FILES for p in source.path.glob(kind)]
    return sum(file.stat().st_size for file in files)


def _kv_bytes(settings: Settings) -> int:
    return settings.kv_cache_memory or min(GIB, available_memory_bytes() // 2)


def measure_bytes(pid: int, info: EngineInfo) -> int:
    """What a loaded engine takes on its device, a KV cache included that it will only fill later."""
    if info.device != "cpu":
        return info.weight_bytes + info.kv_cache_bytes + _GPU_PROCESS_BYTES
    return private_bytes(pid) + info.kv_cache_bytes


def private_bytes(pid: int) -> int:
    """A process's memory that is its own and in use: anonymous pages, and those that it shares with its children.
    0 where /proc doesn't say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return sum(int(sizes[name][0]) * 1024 for name in ("RssAnon", "RssShmem") if name in sizes)


def shown_bytes(size_bytes: int) -> str:
    """A size for log lines and messages."""
    return f"{size_bytes / GIB:.2f} GiB"
