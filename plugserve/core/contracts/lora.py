"""LoRA managers: the matrices that adapters change, and the plugin that applies adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LoraSlice:
    """Outputs [start, start + size) of a site: what Hugging Face calls module within a layer ("self_attn.q_proj").
    Where ranks share a model, they are the part-th of the module's num_parts equal parts."""

    module: str
    start: int
    size: int
    part: int = 0
    num_parts: int = 1


@dataclass(frozen=True, slots=True)
class LoraSite:
    """A matrix of every layer that adapters may change: name is "qkv", "o", "gate_up" or "down".

    It maps input_size to output_size; slices are the parts that lie in it one after another. fused is what models that
    fuse them themselves call the whole ("self_attn.qkv_proj"), "" where there is one slice. Where ranks share a model,
    the inputs are the input_part-th of num_input_parts equal parts.
    """

    name: str
    input_size: int
    slices: tuple[LoraSlice, ...]
    fused: str = ""
    input_part: int = 0
    num_input_parts: int = 1

    @property
    def output_size(self) -> int:
        return sum(part.size for part in self.slices)


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The facts about a model that a LoRA manager needs. dtype and device are torch's names.

    max_loras adapters of rank up to max_rank have slots at the same time, numbered from 0. weight_prefixes are (prefix
    in Hugging Face's model, prefix here), for models whose layers are not at model.layers. stage_layers are those of
    the num_layers layers that are computed here, None for all: a manager can leave the others' weights out. Layers keep
    their numbers.
    """

    num_layers: int
    sites: tuple[LoraSite, ...]
    dtype: str
    device: str
    max_loras: int
    max_rank: int
    weight_prefixes: tuple[tuple[str, str], ...] = ()
    stage_layers: range | None = None

    @property
    def own_layers(self) -> range:
        """The layers that are computed here."""
        return range(self.num_layers) if self.stage_layers is None else self.stage_layers


@runtime_checkable
class LoraManager(Protocol):
    """Reads adapters, holds those that have a slot, and adds their share to the model's projections.

    y += scaling * B (A x) for each row's own adapter (Hu et al. 2021). Core decides which adapter has which slot, and
    never changes a slot between the plan and the applies of a step. read runs on a thread of its own, everything else
    on the runner's.
    """

    graph_safe: bool
    """False: steps in which some row has an adapter run eagerly, never captured."""

    def read(self, path: Path) -> Any:
        """Read an adapter's weights from its folder into host memory; the result is passed to load each time that the
        adapter gets a slot. Raises AdapterError with one line that names the cause if the adapter can't be served."""

    def load(self, slot: int, adapter: Any) -> None:
        """Put an adapter into a slot; nothing of what was there before may remain."""

    def unload(self, slot: int) -> None:
        """Empty a slot and free its memory."""

    def plan(self, slots: Sequence[int], num_tokens: Sequence[int]) -> Any:
        """Prepare the data that all sites of one step share. Row b of the step has num_tokens[b] tokens, which lie one
        row after another, and the adapter in slots[b], -1 for none. Not called where all are -1."""

    def apply(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor, step: Any) -> None:
        """Add to y [T, output_size] what the rows' adapters make of x [T, input_size]; rows without one stay as they
        are, bit for bit."""

    @property
    def size_bytes(self) -> int:
        """Device memory in use, in bytes."""
