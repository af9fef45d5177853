"""Reads LoRA adapters as PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

The result is on the CPU, in the model's dtype, checked, and multiplied by its scaling. The file is read into memory
instead of mapped, so that overwriting or truncating it can't change the weights or crash the process. Imports torch
when the first adapter is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts.lora import LoraSite, LoraSlice, LoraSpec
from plugserve.core.contracts.regular_files import read_regular_file
from plugserve.core.errors import AdapterError
from plugserve.plugins.lora.peft_config import AdapterConfig, read_config

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "adapter_model.safetensors"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_HEADER_BYTES = 16 << 20  # more than any header takes
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
_IN_LAYER = re.compile(r"model\.layers\.(?P<layer>\d{1,6})\.(?P<module>.+)")


@dataclass(frozen=True, slots=True)
class Part:
    """One module's share of a site: x @ a.T @ b goes to outputs [start, start + b.shape[1]).

    a [rank, input_size]; b [rank, size], scaled.
    """

    start: int
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One adapter: the parts of each (site, layer) that it changes."""

    parts: Mapping[tuple[str, int], tuple[Part, ...]]

    @property
    def size_bytes(self) -> int:
        tensors = [tensor for parts in self.parts.values() for part in parts for tensor in (part.a, part.b)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


_File = dict[str, Mapping[str, Any]]
"""Of each tensor: dtype, shape and data (bytes)."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The place of a module's update. module is its name in a layer, path its whole name in Hugging Face's model;
    slices are the site's that it covers."""

    site: LoraSite
    layer: int
    module: str
    path: str
    slices: tuple[LoraSlice, ...]

    @property
    def shape_of_whole(self) -> tuple[int, int]:
        """Inputs and outputs of the module in the file: of all ranks together."""
        outputs = sum(one.size * one.num_parts for one in self.slices)
        return self.site.input_size * self.site.num_input_parts, outputs

    def own_inputs(self, a: torch.Tensor) -> torch.Tensor:
        """a [rank, whole inputs] -> [rank, inputs]"""
        return a.narrow(1, self.site.input_part * self.site.input_size, self.site.input_size)

    def own_outputs(self, b: torch.Tensor) -> torch.Tensor:
        """b [rank, whole outputs] -> [rank, outputs]"""
        import torch

        own, start = [], 0
        for one in self.slices:
            own.append(b.narrow(1, start + one.part * one.size, one.size))
            start += one.size * one.num_parts
        return torch.cat(own, 1)


class AdapterReader:
    """Reads adapters for one model."""

    def __init__(self, spec: LoraSpec) -> None:
        self._spec = spec
        self._places: dict[str, tuple[LoraSite, tuple[LoraSlice, ...]]] = {}  # by module
        for site in spec.sites:
            for part in site.slices:
                self._places[part.module] = (site, (part,))
            if site.fused:
                self._places[site.fused] = (site, site.slices)

    def read(self, folder: Path) -> LoraWeights:
        """Raises AdapterError that names the cause but not folder's path, because it is sent to clients."""
        if not folder.is_dir():
            raise AdapterError("the path is not a folder")
        config = read_config(folder, self._spec.max_rank)
        self._check_targets(config)
        path = folder / WEIGHTS_FILE
        if not path.exists():
            others = [file.name for file in sorted(folder.glob("adapter_model.*"))]
            advice = f"; {others[0]} has to be converted to safetensors first" if others else ""
            raise AdapterError(f"{WEIGHTS_FILE} is missing{advice}")
        file = self._read_file(path)
        pairs = self._pairs(file, config)
        return LoraWeights(_by_site(self._parts(file, pairs, config)))

    def _read_file(self, path: Path) -> _File:
        from safetensors import SafetensorError, deserialize

        targets = (_Target(site, 0, "", "", slices) for site, slices in self._places.values())
        ranks = sum(sum(target.shape_of_whole) for target in targets)
        most_bytes = 8 * self._spec.num_layers * self._spec.max_rank * ranks + _HEADER_BYTES
        try:
            if path.stat().st_size > most_bytes:
                raise AdapterError(f"{WEIGHTS_FILE} is larger than an adapter of rank {self._spec.max_rank} can be")
            return dict(deserialize(read_regular_file(path, most_bytes)))  # type: ignore[no-untyped-call]
        except OSError as error:
            raise AdapterError(f"{WEIGHTS_FILE} can't be read: {error.strerror}") from None
        except (SafetensorError, ValueError) as error:
            raise AdapterError(f"{WEIGHTS_FILE} is not a whole safetensors file: {error}") from None

    def _check_targets(self, config: AdapterConfig) -> None:
        known = {module.rpartition(".")[2] for module in self._places}
        unknown = [name for name in config.targets or () if name.rpartition(".")[2] not in known]
        if unknown:
            raise AdapterError(
                f"unknown target module {unknown[0]!r}: adapters of this model may target {', '.join(sorted(known))}"
            )

    # ---- names and shapes

    def _pairs(self, file: _File, config: AdapterConfig) -> dict[str, tuple[_Target, dict[str, str]]]:
        """By module path: its place, and the names of its A and B in the file."""
        pairs: dict[str, tuple[_Target, dict[str, str]]] = {}
        for name in file:
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise AdapterError(f"tensor {name} is not a LoRA A or B of a projection, and would be left out")
            target = self._target(match["module"], name)
            sides = pairs.setdefault(target.path, (target, {}))[1]
            if match["side"] in sides:
                raise AdapterError(f"tensors {sides[match['side']]} and {name} are the same part of one module")
            sides[match["side"]] = name
        if not pairs:
            raise AdapterError(f"{WEIGHTS_FILE} holds no tensors")
        for target, sides in pairs.values():
            self._check_pair(file, target, sides, config)
        self._check_named(pairs, config)
        return pairs

    def _target(self, given: str, tensor: str) -> _Target:
        path = given.removeprefix("base_model.model.")
        own = path
        for theirs, ours in self._spec.weight_prefixes:
            if path.startswith(theirs):
                own = ours + path.removeprefix(theirs)
                break
        match = _IN_LAYER.fullmatch(own)
        place = self._places.get(match["module"]) if match else None
        if match is None or place is None:
            raise AdapterError(f"unknown target module {path!r} (tensor {tensor}): this model has no such projection")
        layer = int(match["layer"])
        if layer >= self._spec.num_layers:
            raise AdapterError(f"tensor {tensor} is for layer {layer}, the model has {self._spec.num_layers} layers")
        return _Target(place[0], layer, match["module"], path, place[1])

    def _check_pair(self, file: _File, target: _Target, sides: Mapping[str, str], config: AdapterConfig) -> None:
        if len(sides) < 2:
            there = next(iter(sides.values()))
            raise AdapterError(f"tensor {there} stands alone: a module needs lora_A and lora_B")
        rank = config.rank_of(target.path)
        num_inputs, num_outputs = target.shape_of_whole
        for side, shape in (("A", [rank, num_inputs]), ("B", [num_outputs, rank])):
            entry = file[sides[side]]
            if entry["dtype"] not in _FLOATS:
                raise AdapterError(f"tensor {sides[side]} is {entry['dtype']}; only floating numbers are supported")
            if list(entry["shape"]) != shape:
                raise AdapterError(
                    f"tensor {sides[side]} has shape {list(entry['shape'])}, the model and the adapter's rank ask "
                    f"for {shape}"
                )

    def _check_named(self, pairs: Mapping[str, tuple[_Target, Any]], config: AdapterConfig) -> None:
        """Check that config and file name the same modules."""
        if config.targets is None:
            return
        for target, _ in pairs.values():
            if not any(target.path == name or target.path.endswith("." + name) for name in config.targets):
                raise AdapterError(f"there are tensors for {target.path}, which target_modules does not name")
        for name in config.targets:
            if not any(path == name or path.endswith("." + name) for path in pairs):
                raise AdapterError(f"target_modules names {name!r}, for which there are no tensors")

    # ---- the tensors

    def _parts(
        self, file: _File, pairs: Mapping[str, tuple[_Target, Mapping[str, str]]], config: AdapterConfig
    ) -> Iterator[tuple[_Target, Part]]:
        import torch

        dtype: torch.dtype = getattr(torch, self._spec.dtype)
        for target, sides in pairs.values():
            a, b = (_tensor(file[sides[side]]).float() for side in "AB")
            b = target.own_outputs(b.T * config.scaling_of(target.path))
            part = Part(target.slices[0].start, target.own_inputs(a).to(dtype).contiguous(), b.to(dtype).contiguous())
            for side, tensor in (("A", part.a), ("B", part.b)):
                if not bool(tensor.isfinite().all()):
                    raise AdapterError(f"tensor {sides[side]} holds NaN or infinity (as {self._spec.dtype})")
            if target.layer in self._spec.own_layers:
                yield target, part


def _tensor(entry: Mapping[str, Any]) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, _FLOATS[entry["dtype"]])
    return torch.frombuffer(bytearray(entry["data"]), dtype=dtype).view(entry["shape"])


def _by_site(parts: Iterator[tuple[_Target, Part]]) -> dict[tuple[str, int], tuple[Part, ...]]:
    """Grouped and in order of outputs. Raises AdapterError where two modules mean the same outputs."""
    found: dict[tuple[str, int], list[Part]] = {}
    for target, part in parts:
        found.setdefault((target.site.name, target.layer), []).append(part)
    for (site, layer), own in found.items():
        own.sort(key=lambda part: part.start)
        for one, next_one in pairwise(own):
            if next_one.start < one.start + one.b.shape[1]:
                raise AdapterError(f"two modules of layer {layer} change the same outputs of {site}")
    return {key: tuple(own) for key, own in found.items()}
