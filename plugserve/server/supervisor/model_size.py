"""The memory that models may take, and what a loaded one takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.memory import HOST
from plugserve.core.memory.machine import available_memory_bytes
from plugserve.core.settings.settings import Settings

GIB: Final = 1 << 30
_GPU_PROCESS_BYTES: Final = GIB  # the CUDA context, libraries and captured graphs on the device
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


def measure_bytes(pid: int, info: EngineInfo) -> int:
    """What a loaded engine takes on its device at its peak: what was predicted, or what it takes already, with its KV
    cache full, if that is more."""
    is_on_cpu = info.device == "cpu"
    measured = info.weight_bytes + info.kv_cache_bytes + _GPU_PROCESS_BYTES
    if is_on_cpu:
        measured = private_bytes(pid) + info.kv_cache_bytes
    if info.memory is None:
        return measured
    predicted = next((one for one in info.memory.places if (one.name == HOST) == is_on_cpu), None)
    return max(measured if is_on_cpu else 0, predicted.needed_bytes if predicted is not None else measured)


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
