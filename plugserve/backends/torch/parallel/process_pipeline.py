"""The messages between a pipeline's stages over torch.distributed: NCCL between GPUs, gloo between processes on CPUs.

Each pair of ranks has a group of its own for hidden states, and each pair of first and last stage one for tokens: with
NCCL that is a communicator and a stream each, so a message never waits behind one of another kind.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

from plugserve.core.contracts.parallel import RankPlacement

MEETING_TIMEOUT: Final = timedelta(minutes=10)
"""When a rank's process ends, the group ends at once (core.engine.ranks). This bounds the wait for one that hangs."""


class _Sender:
    """Messages to the rank peer, one a step. Tensors are kept until they have arrived: those of the steps in flight,
    so that send never waits."""

    def __init__(self, peer: int, group: dist.ProcessGroup, num_stages: int) -> None:
        self._peer = peer
        self._group = group
        self._most_in_flight = num_stages + 1
        self._on_the_way: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def send(self, x: torch.Tensor) -> None:
        if len(self._on_the_way) > self._most_in_flight:
            self._on_the_way.popleft()[0].wait()  # its step is collected
        x = x.contiguous()
        work = dist.isend(x, self._peer, group=self._group)
        assert work is not None, "this rank is not in the group"
        self._on_the_way.append((work, x))


class _Coming:
    """A message that is awaited later."""

    def __init__(self, work: dist.Work, tokens: torch.Tensor) -> None:
        self._work = work
        self._tokens = tokens

    def wait(self) -> torch.Tensor:
        self._work.wait()
        return self._tokens


class ProcessPipeline:
    """The Pipeline of one rank; call join once the default process group is there."""

    def __init__(self, placement: RankPlacement, device: torch.device) -> None:
        self.stage = placement.stage
        self.num_stages = placement.num_stages
        self._placement = placement
        self._device = device
        self._before: tuple[int, dist.ProcessGroup]
        self._first: _Sender
        self._next: _Sender
        self._last: tuple[int, dist.ProcessGroup]

    def join(self) -> None:
        """Every rank makes all groups, in one order, its own or not."""
        place, size = self._placement, self._placement.tensor_size
        for stage in range(self.num_stages - 1):
            for n in range(size):
                sender, receiver = stage * size + n, (stage + 1) * size + n
                group = dist.new_group([sender, receiver], timeout=MEETING_TIMEOUT)
                if place.rank == sender:
                    self._next = _Sender(receiver, group, self.num_stages)
                elif place.rank == receiver:
                    self._before = (sender, group)
        for n in range(size):
            last = place.num_ranks - size + n
            group = dist.new_group([n, last], timeout=MEETING_TIMEOUT)
            if place.rank == n:
                self._last = (last, group)
            elif place.rank == last:
                self._first = _Sender(n, group, self.num_stages)

    def receive_hidden(self, num_tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        x = torch.empty((num_tokens, width), dtype=dtype, device=self._device)
        peer, group = self._before
        dist.recv(x, peer, group=group)
        return x

    def send_hidden(self, x: torch.Tensor) -> None:
        self._next.send(x)

    def receive_tokens(self, count: int) -> _Coming:
        tokens = torch.empty(count, dtype=torch.int32, device=self._device)
        peer, group = self._last
        work = dist.irecv(tokens, peer, group=group)
        assert work is not None, "this rank is not in the group"
        return _Coming(work, tokens)

    def send_tokens(self, tokens: torch.Tensor) -> None:
        self._first.send(tokens)
