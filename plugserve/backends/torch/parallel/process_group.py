"""Collectives over torch.distributed: NCCL between GPUs, gloo between processes on CPUs."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.errors import ConfigError

_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name since torch 2.13
_MEETING_TIMEOUT = timedelta(minutes=10)
"""When a rank's process ends, the group ends at once (core.engine.ranks). This bounds the wait for one that hangs."""


class ProcessGroup:
    """Collectives of the default process group. Calls inside a CUDA graph's capture become part of the graph."""

    def __init__(self, placement: RankPlacement, device: torch.device) -> None:
        self.rank = placement.rank
        self.num_ranks = placement.num_ranks
        self._rendezvous = placement.rendezvous
        self._device = device

    def join(self) -> None:
        is_gpu = self._device.type == "cuda"
        if is_gpu:
            torch.cuda.set_device(self._device)
        elif self._rendezvous.startswith("file:"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whose own name may not resolve
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            init_method=self._rendezvous,
            rank=self.rank,
            world_size=self.num_ranks,
            timeout=_MEETING_TIMEOUT,
            device_id=self._device if is_gpu else None,
        )
        self.least(self.rank)  # opens the connections now, not in the first captured step

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        num_rows, width = x.shape
        gathered = x.new_empty((self.num_ranks * num_rows, width))
        _all_gather(gathered, x.contiguous())
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
            f"--tensor-parallel-size {placement.num_ranks} needs as many GPUs, this machine has {num_gpus}: "
            f"use --tensor-parallel-size {num_gpus}"
        )
    return f"cuda:{placement.local_rank}"


def leave() -> None:
    """Close the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
