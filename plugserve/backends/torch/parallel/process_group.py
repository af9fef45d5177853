"""Collectives over torch.distributed: NCCL between GPUs, gloo between processes on CPUs."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from plugserve.backends.torch.models.pipeline import ONE_STAGE, Pipeline
from plugserve.backends.torch.parallel.process_pipeline import MEETING_TIMEOUT, ProcessPipeline
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.errors import ConfigError

_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name since torch 2.13


class ProcessGroup:
    """Collectives of one stage's ranks. Calls inside a CUDA graph's capture become part of the graph."""

    def __init__(self, placement: RankPlacement, device: torch.device) -> None:
        self.rank = placement.tensor_rank
        self.num_ranks = placement.tensor_size
        self._placement = placement
        self._device = device
        self._group: dist.ProcessGroup | None = None  # of the stage; None: of all ranks
        self.pipeline: Pipeline = ONE_STAGE
        if placement.num_stages > 1:
            self.pipeline = self._stages = ProcessPipeline(placement, device)

    def join(self) -> None:
        placement, is_gpu = self._placement, self._device.type == "cuda"
        if is_gpu:
            torch.cuda.set_device(self._device)
        elif placement.rendezvous.startswith("file:"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whose own name may not resolve
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            init_method=placement.rendezvous,
            rank=placement.rank,
            world_size=placement.num_ranks,
            timeout=MEETING_TIMEOUT,
            device_id=self._device if is_gpu else None,
        )
        if placement.num_stages > 1:
            self._join_stages()
        self.least(placement.rank)  # opens the connections now, not in the first captured step

    def _join_stages(self) -> None:
        """Every rank makes all groups, in one order, its own or not."""
        size = self.num_ranks
        for stage in range(self._placement.num_stages):
            group = dist.new_group(range(stage * size, (stage + 1) * size), timeout=MEETING_TIMEOUT)
            if stage == self._placement.stage:
                self._group = group
        self._stages.join()

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self.num_ranks > 1:
            dist.all_reduce(x, group=self._group)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        num_rows, width = x.shape
        gathered = x.new_empty((self.num_ranks * num_rows, width))
        _all_gather(gathered, x.contiguous(), group=self._group)
        return gathered.view(self.num_ranks, num_rows, width).transpose(0, 1).reshape(num_rows, -1)

    def least(self, number: int) -> int:
        value = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return int(value.item())


def device_of(name: str, placement: RankPlacement) -> str:
    """The device of this rank, for --device name. Raises ConfigError for more ranks than GPUs."""
    if placement.num_ranks == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    num_gpus = torch.cuda.device_count()
    if placement.local_rank >= num_gpus:
        raise ConfigError(
            f"{_flags(placement)} needs {placement.num_ranks} GPUs, this machine has {num_gpus}: share the model "
            f"between {num_gpus} at most"
        )
    return f"cuda:{placement.local_rank}"


def _flags(placement: RankPlacement) -> str:
    sizes = {"--tensor-parallel-size": placement.tensor_size, "--pipeline-parallel-size": placement.num_stages}
    return " and ".join(f"{flag} {size}" for flag, size in sizes.items() if size > 1)


def leave() -> None:
    """Close the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
