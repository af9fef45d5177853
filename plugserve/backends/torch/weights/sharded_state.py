"""Weights that each rank of a model's parallel group saved for itself (vLLM's sharded_state), joined to whole tensors.

A tensor's shards are joined by its shape in the model: shards of that shape are copies; shards that are smaller along
one axis are parts in the order of ranks, each repeated where ranks outnumber key-value heads; vocabularies may be
padded at the end. Fused projections (qkv_proj, gate_up_proj) are taken apart rank by rank first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import safe_open
from tqdm import tqdm

from plugserve.backends.torch.weights.safetensors_files import read_tensor
from plugserve.core.errors import ModelError
from plugserve.core.model_files.sharded_files import check_sharded

if TYPE_CHECKING:
    import torch

FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""A fused projection, and its parts in the order of their outputs."""
VOCABULARY: Final = ("embed_tokens.weight", "lm_head.weight")
Shapes = Mapping[str, Sequence[int]]


def iterate_sharded(folder: Path, shapes: Shapes, *, show_progress: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor). shapes are those of the model's tensors. Checks the files' presence and headers before it
    returns."""
    return _read(check_sharded(folder), shapes, show_progress)


def _read(ranks: list[list[Path]], shapes: Shapes, show_progress: bool) -> Iterator[tuple[str, torch.Tensor]]:
    with ExitStack() as stack:
        files = [
            {
                name: (path, shard)
                for path in paths
                for shard in [stack.enter_context(safe_open(path, framework="pt"))]
                for name in shard.keys()  # noqa: SIM118 - safe_open is no mapping
            }
            for paths in ranks
        ]
        names = tqdm(
            files[0], desc="Loading sharded checkpoint tensors", unit="tensor", disable=not show_progress,
            file=sys.stderr,
        )  # fmt: skip
        for name in names:
            yield from _whole(name, files, shapes)


def _whole(name: str, files: list[dict[str, tuple[Path, Any]]], shapes: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole tensors that name's shards make: one, or the parts of a fused one. A tensor that the model doesn't name
    is returned as rank 0 has it."""
    parts = parts_of(name, shapes)
    if name not in shapes and not parts:
        yield name, read_tensor(*files[0][name], name)
        return
    for rank, held in enumerate(files):
        if name not in held:
            raise ModelError(f"rank {rank} of the sharded checkpoint lacks tensor {name}, which rank 0 has")
    shards = [read_tensor(*held[name], name) for held in files]
    if name in shapes:
        yield name, join(name, shards, shapes[name])
        return
    split = [split_fused(name, shard, [shapes[part] for part in parts], len(shards)) for shard in shards]
    for index, part in enumerate(parts):
        yield part, join(part, [one[index] for one in split], shapes[part])


def parts_of(name: str, shapes: Shapes) -> list[str]:
    """The model's tensors that a fused tensor holds; [] where name is none."""
    for fused, parts in FUSED.items():
        if f".{fused}." in name:
            names = [name.replace(f".{fused}.", f".{part}.") for part in parts]
            return names if all(one in shapes for one in names) else []
    return []


def split_fused(
    name: str, shard: torch.Tensor, part_shapes: Sequence[Sequence[int]], num_ranks: int
) -> Sequence[torch.Tensor]:
    """One rank's parts of a fused tensor. The first part is cut evenly; the others share what is left, which is more
    than their even share where each head is held by several ranks."""
    first = part_shapes[0][0] // num_ranks
    others = len(part_shapes) - 1
    rest = len(shard) - first
    if rest < others or rest % others:
        whole = [sum(shape[0] for shape in part_shapes), *part_shapes[0][1:]]
        raise _misfit(name, shard, whole, num_ranks)
    import torch

    return torch.split(shard, [first, *[rest // others] * others])


def join(name: str, shards: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The whole tensor of shape. Raises ModelError for shards that don't make it up."""
    import torch

    first = shards[0]
    shape = list(shape)
    if any(one.shape != first.shape or one.dtype != first.dtype for one in shards):
        shown = ", ".join(str(list(one.shape)) for one in shards)
        raise ModelError(f"tensor {name}: the ranks hold different shards ({shown}); they are not of one checkpoint")
    if list(first.shape) == shape:
        return first
    axes = [axis for axis in range(first.ndim) if first.ndim == len(shape) and first.shape[axis] != shape[axis]]
    if len(axes) != 1:
        raise _misfit(name, first, shape, len(shards))
    axis, size = axes[0], shape[axes[0]]
    total = first.shape[axis] * len(shards)
    if axis == 0 and name.endswith(VOCABULARY) and size < total < size + math.lcm(64, len(shards)):
        return torch.cat(list(shards), 0)[:size]
    if total < size or total % size or len(shards) % (total // size):
        raise _misfit(name, first, shape, len(shards))
    return torch.cat(list(shards[:: total // size]), axis)


def _misfit(name: str, shard: torch.Tensor, shape: Sequence[int], num_ranks: int) -> ModelError:
    return ModelError(
        f"tensor {name} has shape {list(shard.shape)} in each of {num_ranks} rank files, the model's config asks for "
        f"{list(shape)} in all; a rank's files are missing, or they are another model's"
    )
