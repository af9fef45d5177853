"""What a rank's process is started with: settings, model, its placement, and where its calls come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.weights import ModelSource


class RankOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One line of JSON that follows the settings. Fields as in ModelSource and RankPlacement; calls is the ZMQ address
    of rank 0's calls."""

    name: str
    kind: Literal["folder", "gguf"]
    path: str
    tokenizer_path: str | None
    rank: int
    num_ranks: int
    local_rank: int
    rendezvous: str
    calls: str

    @classmethod
    def of(cls, source: ModelSource, placement: RankPlacement, calls: str) -> RankOrder:
        return cls(
            name=source.name,
            kind=source.kind,
            path=str(source.path),
            tokenizer_path=None if source.tokenizer_path is None else str(source.tokenizer_path),
            rank=placement.rank,
            num_ranks=placement.num_ranks,
            local_rank=placement.local_rank,
            rendezvous=placement.rendezvous,
            calls=calls,
        )

    @property
    def source(self) -> ModelSource:
        tokenizer = None if self.tokenizer_path is None else Path(self.tokenizer_path)
        return ModelSource(self.name, (), self.kind, Path(self.path), tokenizer)

    @property
    def placement(self) -> RankPlacement:
        return RankPlacement(self.rank, self.num_ranks, self.local_rank, self.rendezvous)
