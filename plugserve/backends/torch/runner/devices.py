"""The differences between devices at loading: one DeviceKind for the CPU, one for CUDA GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from plugserve.backends.torch.runner.device_memory import CpuMemory, CudaMemory, DeviceMemory
from plugserve.backends.torch.runner.host_copies import HostCopies, PinnedHostCopies
from plugserve.backends.torch.runner.memory_plan import GIB
from plugserve.core.errors import ConfigError

if TYPE_CHECKING:
    from plugserve.backends.torch.models.streamed_parts import Link
    from plugserve.backends.torch.runner.executor import Executor
    from plugserve.backends.torch.runner.loaded_model import LoadedModel


class DeviceKind(Protocol):
    """A device, and the choices that follow from its kind."""

    device: torch.device
    default_num_batched_tokens: int
    num_padding_blocks: int
    """KV blocks beside those of the plan: what the padding rows of captured steps write to."""

    @property
    def memory(self) -> DeviceMemory:
        """What takes its memory besides weights and KV."""

    def default_dtype(self, saved: torch.dtype) -> torch.dtype:
        """The dtype for --dtype auto of a checkpoint that was saved in saved."""

    def default_host_bytes(self, available_bytes: int) -> int:
        """Host memory for KV blocks where the user set none."""

    def zeros(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        """A zeroed tensor for KV."""

    def host_copies(self, kv: list[torch.Tensor], block_axis: int) -> HostCopies:
        """The copier of KV blocks between kv and host memory."""

    def weight_link(self) -> Link | None:
        """The way of weights that stay in host memory; None where all memory is the host's."""

    def start(self, loaded: LoadedModel) -> Executor:
        """The executor of the loaded model's steps."""


class CpuKind:
    """The CPU. float32 by default: greedy output then doesn't depend on what else is in the batch."""

    device = torch.device("cpu")
    memory = CpuMemory()
    default_num_batched_tokens = 256
    num_padding_blocks = 0

    def default_dtype(self, saved: torch.dtype) -> torch.dtype:
        return torch.float32

    def default_host_bytes(self, available_bytes: int) -> int:
        """None: a larger KV cache does the same without copying."""
        return 0

    def zeros(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        """The system allocates its pages when they are first written."""
        num_bytes = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
        return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)

    def host_copies(self, kv: list[torch.Tensor], block_axis: int) -> HostCopies:
        return HostCopies(kv, block_axis)

    def weight_link(self) -> Link | None:
        return None

    def start(self, loaded: LoadedModel) -> Executor:
        from plugserve.backends.torch.runner.cpu_executor import CpuExecutor

        return CpuExecutor(loaded.steps)


class CudaKind:
    """A GPU that torch calls cuda."""

    default_num_batched_tokens = 8192
    num_padding_blocks = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory = CudaMemory(device)

    def default_dtype(self, saved: torch.dtype) -> torch.dtype:
        """The checkpoint's own, but bfloat16 for float32."""
        return torch.bfloat16 if saved is torch.float32 else saved

    def default_host_bytes(self, available_bytes: int) -> int:
        return min(4 * GIB, available_bytes // 2)

    def zeros(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def host_copies(self, kv: list[torch.Tensor], block_axis: int) -> HostCopies:
        return PinnedHostCopies(kv, block_axis)

    def weight_link(self) -> Link | None:
        from plugserve.backends.torch.runner.weight_offload import CudaLink

        return CudaLink(self.device)

    def start(self, loaded: LoadedModel) -> Executor:
        from plugserve.backends.torch.runner.cuda_executor import CudaExecutor

        return CudaExecutor(loaded)


def choose_device(name: str) -> DeviceKind:
    """The device for --device; auto takes the first GPU that torch can use, else the CPU."""
    if name == "auto":
        return CudaKind(torch.device("cuda")) if torch.cuda.is_available() else CpuKind()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is not a device; use auto, cpu or cuda") from error
    if device.type == "cpu":
        return CpuKind()
    if device.type != "cuda":
        raise ConfigError(f"--device {name} is not supported; use auto, cpu or cuda")
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds no CUDA device here; use --device cpu")
    return CudaKind(device)
