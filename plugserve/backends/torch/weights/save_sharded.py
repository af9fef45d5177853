"""Writes weights as sharded_state: one set of safetensors files for each rank of a parallel group, cut as ranks use
them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from plugserve.backends.torch.weights.sharded_state import VOCABULARY, parts_of
from plugserve.core.contracts.model import ModelDefinition, Parameter
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.fill_parameters import check_shape
from plugserve.core.model_files.sharded_files import NUM_PARTS, NUM_RANKS, sharded_name

if TYPE_CHECKING:
    Weights = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class SavedFiles:
    """What was written: files, and their bytes of weights."""

    num_files: int
    num_bytes: int


def save_sharded(
    folder: Path, weights: Weights, model: ModelDefinition, *, num_ranks: int, max_file_bytes: int
) -> SavedFiles:
    """Write weights into folder. A file has at most max_file_bytes of tensors, or one tensor. Memory holds that much a
    rank. Raises ConfigError for a model that num_ranks ranks can't share."""
    parameters = model.parameters()
    attention = model.attention_spec("float32", "cpu")
    if attention.num_heads % num_ranks:
        raise ConfigError(
            f"--tensor-parallel-size {num_ranks} can't share {attention.num_heads} attention heads evenly"
        )
    cutter = _Cutter(parameters, num_ranks, attention.num_kv_heads)
    writers = [_RankWriter(folder, rank, num_ranks, max_file_bytes) for rank in range(num_ranks)]
    for name, tensor in _by_own_names(weights, model.weight_prefixes, parameters, is_split=num_ranks > 1):
        for writer, shard in zip(writers, cutter.cut(name, tensor), strict=False):
            writer.add(name, shard)
    for writer in writers:
        writer.finish()
    return SavedFiles(sum(one.num_parts for one in writers), sum(one.num_bytes for one in writers))


def _by_own_names(
    weights: Weights, prefixes: tuple[tuple[str, str], ...], parameters: Mapping[str, Parameter], *, is_split: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """weights by the model's names; is_split: fused tensors are taken apart."""
    shapes = {name: one.shape for name, one in parameters.items()}
    for given, tensor in weights:
        name = given
        for theirs, ours in prefixes:
            if given.startswith(theirs):
                name = ours + given.removeprefix(theirs)
                break
        parts = parts_of(name, shapes) if is_split and name not in shapes else []
        if parts:
            yield from zip(parts, torch.split(tensor, [shapes[part][0] for part in parts]), strict=True)
        else:
            yield name, tensor


class _Cutter:
    """Cuts tensors for ranks. Key-value heads are repeated where ranks outnumber them; a vocabulary is padded with
    zeros to a size that ranks can share."""

    def __init__(self, parameters: Mapping[str, Parameter], num_ranks: int, num_kv_heads: int) -> None:
        self._parameters = parameters
        self._num_ranks = num_ranks
        self._num_kv_heads = num_kv_heads

    def cut(self, name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The shard of each rank; only rank 0's for a tensor that is not a parameter of the model."""
        parameter = self._parameters.get(name)
        if parameter is None:
            return [tensor]
        check_shape(name, tensor, torch.empty(parameter.shape, device="meta"))
        axis, count = parameter.shard_axis, self._num_ranks
        if axis is None or count == 1:
            return [tensor] * count
        if name.endswith(VOCABULARY) and len(tensor) % count:
            wanted = math.lcm(64, count)
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, -len(tensor) % wanted))
        num_copies = 1
        if ".k_proj." in name or ".v_proj." in name:
            if self._num_kv_heads % count and count % self._num_kv_heads:
                raise ConfigError(
                    f"--tensor-parallel-size {count} can't share {self._num_kv_heads} key-value heads; use a divisor "
                    "or a multiple of them"
                )
            num_copies = max(1, count // self._num_kv_heads)
        num_pieces = count // num_copies
        if tensor.shape[axis] % num_pieces:
            raise ConfigError(
                f"--tensor-parallel-size {count} can't share {name} of shape {list(tensor.shape)} along axis {axis}"
            )
        pieces = tensor.chunk(num_pieces, axis)
        return [pieces[rank // num_copies] for rank in range(count)]


class _RankWriter:
    """Writes one rank's files. Part 0 holds the number of parts in its metadata, and is written last."""

    def __init__(self, folder: Path, rank: int, num_ranks: int, max_bytes: int) -> None:
        self._folder, self._rank, self._num_ranks, self._max_bytes = folder, rank, num_ranks, max_bytes
        self._first: dict[str, torch.Tensor] | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._size = 0
        self.num_parts = 0
        self.num_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._tensors and self._size + size > self._max_bytes:
            self._close_part()
        self._tensors[name] = tensor.clone(memory_format=torch.contiguous_format)  # a view would keep the whole alive
        self._size += size
        self.num_bytes += size

    def _close_part(self) -> None:
        if self.num_parts:
            self._write(self.num_parts, self._tensors, {})
        else:
            self._first = self._tensors
        self.num_parts += 1
        self._tensors, self._size = {}, 0

    def finish(self) -> None:
        self._close_part()
        self._write(0, self._first or {}, {NUM_PARTS: str(self.num_parts)})

    def _write(self, part: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        facts = {"format": "pt", NUM_RANKS: str(self._num_ranks), **metadata}
        save_file(tensors, self._folder / sharded_name(self._rank, part), facts)
