"""The processes that hold a model, for `plugserve doctor`: each engine's ranks, their devices and their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plugserve.core.contracts.memory import MemoryLedger
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.memory.ledger_text import host_problem
from plugserve.core.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class RankLine:
    """One process. device is "cuda:1", "cpu", or "a node of Ray's choice". layers are "0-13", share "1 of 2"."""

    engine: int
    rank: int
    device: str
    stage: int
    layers: str
    share: str

    def __str__(self) -> str:
        stage = f"stage {self.stage}, layers {self.layers}" if self.layers else ""
        share = f"share {self.share} of each layer" if self.share else ""
        return f"  engine {self.engine} rank {self.rank}  {self.device:<8}  {', '.join(filter(None, (stage, share)))}"


@dataclass(frozen=True, slots=True)
class RankTable:
    """The processes of one model that has several. problem says why they don't fit together, "" where they do."""

    lines: Sequence[RankLine]
    executor: str
    problem: str = ""

    def as_text(self) -> str:
        by = f", started by {self.executor}" if self.executor else ""
        head = f"{len(self.lines)} processes{by}; the memory above is the one's that takes most"
        return "\n".join([head, *map(str, self.lines), *([f"they don't fit: {self.problem}"] if self.problem else [])])

    def as_dict(self) -> dict[str, Any]:
        return {"executor": self.executor, "problem": self.problem, "processes": [asdict(one) for one in self.lines]}


def rank_table(settings: Settings, spec: DecoderSpec | None, ledger: MemoryLedger, num_gpus: int) -> RankTable | None:
    """None for a model with one process. spec is that of a decoder; num_gpus are this machine's."""
    num_ranks, num_engines = settings.num_ranks, settings.data_parallel_size
    if num_ranks * num_engines == 1:
        return None
    layers = _layers(spec, settings.pipeline_parallel_size)
    is_on_gpu, by_ray = ledger.device.startswith("cuda"), settings.executor == "ray"
    lines = []
    for engine in range(num_engines):
        for rank in range(num_ranks):
            place = RankPlacement(rank, num_ranks, rank, num_stages=settings.pipeline_parallel_size)
            device = f"cuda:{engine * num_ranks + rank}" if is_on_gpu else "cpu"
            lines.append(
                RankLine(
                    engine,
                    rank,
                    "a node of Ray's choice" if by_ray and rank else device,
                    place.stage,
                    layers[place.stage] if place.num_stages > 1 else "",
                    f"{place.tensor_rank + 1} of {place.tensor_size}" if place.tensor_size > 1 else "",
                )
            )
    problem = _gpu_problem(len(lines), num_gpus) if is_on_gpu else host_problem(len(lines), ledger)
    return RankTable(lines, settings.executor or "", "" if by_ray else problem)


def _layers(spec: DecoderSpec | None, num_stages: int) -> list[str]:
    """The layers of each stage, as text."""
    if spec is None or num_stages == 1:
        return [""] * num_stages
    from plugserve.backends.torch.parallel.stages import stage_layers  # heavy: torch

    return [f"{one.start}-{one.stop - 1}" for one in stage_layers(spec, num_stages)]


def _gpu_problem(num_needed: int, num_gpus: int) -> str:
    return f"{num_needed} GPUs are needed, this machine has {num_gpus}" if num_needed > num_gpus else ""
