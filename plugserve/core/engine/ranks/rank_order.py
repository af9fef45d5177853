"""What a rank's process is started with: settings, model and placement, as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.settings.settings import Settings, default_of, setting_facts


class RankOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Fields as in ModelSource and RankPlacement."""

    name: str
    kind: Literal["folder", "gguf"]
    path: str
    tokenizer_path: str | None
    rank: int
    num_ranks: int
    local_rank: int
    rendezvous: str
    num_stages: int

    @classmethod
    def of(cls, source: ModelSource, placement: RankPlacement) -> RankOrder:
        return cls(
            name=source.name,
            kind=source.kind,
            path=str(source.path),
            tokenizer_path=None if source.tokenizer_path is None else str(source.tokenizer_path),
            rank=placement.rank,
            num_ranks=placement.num_ranks,
            local_rank=placement.local_rank,
            rendezvous=placement.rendezvous,
            num_stages=placement.num_stages,
        )

    @property
    def source(self) -> ModelSource:
        tokenizer = None if self.tokenizer_path is None else Path(self.tokenizer_path)
        return ModelSource(self.name, (), self.kind, Path(self.path), tokenizer)

    @property
    def placement(self) -> RankPlacement:
        return RankPlacement(self.rank, self.num_ranks, self.local_rank, self.rendezvous, self.num_stages)


class _Job(msgspec.Struct, frozen=True):
    settings: str
    order: RankOrder


def encode_job(settings: Settings, order: RankOrder, logs_to_file: bool) -> bytes:
    """One line of JSON. API keys and other secrets stay out, and so does --log-file without logs_to_file."""
    hidden = [name for name, facts in setting_facts().items() if facts.is_secret]
    hidden += [] if logs_to_file else ["log_file"]
    values = settings.model_dump() | {name: default_of(name) for name in hidden}
    return msgspec.json.encode(_Job(Settings(**values).model_dump_json(), order))


def decode_job(job: bytes) -> tuple[Settings, RankOrder]:
    decoded = msgspec.json.decode(job, type=_Job)
    return Settings.model_validate_json(decoded.settings), decoded.order
