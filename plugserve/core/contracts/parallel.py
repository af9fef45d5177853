"""The place of a process among those that share one model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """One of num_ranks processes that share a model. They are num_stages stages of a pipeline, each of which holds some
    of the layers; the tensor_size ranks of a stage hold a share of each of its layers. rank counts from 0, stage by
    stage, local_rank from 0 on each machine. rendezvous is where they meet, in torch.distributed's form
    ("tcp://10.0.0.1:29500")."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    rendezvous: str = ""
    num_stages: int = 1

    @property
    def tensor_size(self) -> int:
        return self.num_ranks // self.num_stages

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_size

    @property
    def stage(self) -> int:
        return self.rank // self.tensor_size

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.num_stages - 1


ALONE = RankPlacement()
