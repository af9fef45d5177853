"""The place of a process among those that share one model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """One of num_ranks processes that hold a share of each layer (tensor parallelism). rank counts from 0, local_rank
    from 0 on each machine. rendezvous is where they meet, in torch.distributed's form ("tcp://10.0.0.1:29500")."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    rendezvous: str = ""


ALONE = RankPlacement()
