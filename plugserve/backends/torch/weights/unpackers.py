"""Unpacks quantised tensors to float32 weights [out, in], one class a quant_method.

Each follows its format's own definition: DeepSeek's and vLLM's fp8, compressed-tensors' pack_to_int32, AutoAWQ's GEMM
packing, AutoGPTQ's packing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from plugserve.backends.torch.weights.packed_layer import Group, Unpacker
from plugserve.core.errors import ModelError, one_line

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the column (of 8) that each nibble of an int32 holds, lowest first
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def make_unpacker(config: Mapping[str, Any]) -> Unpacker:
    """The Unpacker of a quantization_config. Raises ModelError for a variant that isn't read."""
    makers: Mapping[str, Callable[[Mapping[str, Any]], Unpacker]] = {
        "awq": _Awq,
        "compressed-tensors": _compressed_tensors,
        "fp8": _Fp8,
        "gptq": _Gptq,
    }
    try:
        return makers[config["quant_method"]](config)
    except ModelError:
        raise
    except Exception as error:  # a value of the wrong type or size
        raise ModelError(f"the model's quantization_config can't be read: {one_line(error)}") from error


# ---------------------------------------------------------------- what methods share


def _unpack_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., n] to its 32 / bits unsigned values each, lowest bits first: int32 [..., n * 32 / bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = torch.bitwise_right_shift(packed.to(torch.int32).unsqueeze(-1), shifts) & ((1 << bits) - 1)
    return values.flatten(-2)


def _spread(layer: str, scales: torch.Tensor, shape: tuple[int, ...], block: list[int] | None = None) -> torch.Tensor:
    """Scales (or zero points) for every element of shape [out, in]: one for all, one a row, one a group of a row's
    elements, or one a block of [rows, columns]."""
    scales = scales.float()
    if scales.numel() == 1:
        return scales.reshape(1, 1)
    if scales.ndim == 1:
        scales = scales.unsqueeze(1)
    rows, columns = shape
    if block is not None:
        wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
        if wide.shape == shape and scales.shape == (-(-rows // block[0]), -(-columns // block[1])):
            return wide
    elif scales.shape[0] == rows and scales.shape[1] and columns % scales.shape[1] == 0:
        return scales.repeat_interleave(columns // scales.shape[1], 1)
    raise ModelError(f"{layer}: scales of shape {list(scales.shape)} don't fit a weight of {list(shape)}")


def _refuse(method: str, what: str, value: object, read: str) -> ModelError:
    return ModelError(f"{method} checkpoints with {what} {value!r} are not supported; supported: {read}")


# ---------------------------------------------------------------- methods


class _Fp8:
    """weight * scale; the scale is called weight_scale, or weight_scale_inv where it is one a block (DeepSeek)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        block = config.get("weight_block_size")
        self._block = [int(size) for size in block] if block else None
        self._scale = "weight_scale_inv" if self._block else "weight_scale"
        self.suffixes = self.required = frozenset({"weight", self._scale})

    def is_plain(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype not in _FP8

    def unpack(self, layer: str, group: Group) -> torch.Tensor:
        weight = group["weight"].float()
        return weight * _spread(layer, group[self._scale], weight.shape, self._block)


def _compressed_tensors(config: Mapping[str, Any]) -> Unpacker:
    schemes = [
        {**group["weights"], "format": group.get("format") or config.get("format")}
        for group in (config.get("config_groups") or {}).values()
        if group.get("weights")
    ]
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise _refuse("compressed-tensors", "sparsity format", sparsity, "dense")
    kinds = {(one["format"], one["num_bits"], one.get("type", "int"), one.get("symmetric", True)) for one in schemes}
    if len(kinds) != 1:
        raise ModelError(
            f"compressed-tensors checkpoints with {len(kinds)} kinds of layers are not supported; supported: 1"
        )
    form, bits, kind, _ = kinds.pop()
    if form == "pack-quantized" and kind == "int" and bits in (4, 8):
        return _PackedInts(schemes[0])
    if form in ("naive-quantized", "int-quantized", "float-quantized") and bits == 8:
        return _Scaled(schemes[0])
    raise _refuse(
        "compressed-tensors", "format", f"{form} ({kind}{bits})", "naive-, int- or float-quantized with 8 bits, and "
        "pack-quantized with int 4 or 8"
    )  # fmt: skip


class _Scaled:
    """compressed-tensors, one stored number an element: (weight - zero point) * scale."""

    def __init__(self, scheme: Mapping[str, Any]) -> None:
        block = scheme.get("block_structure")
        self._block = [int(size) for size in block] if isinstance(block, list) else None
        self.required = frozenset({"weight", "weight_scale"})
        self.suffixes = self.required if scheme.get("symmetric", True) else self.required | {"weight_zero_point"}

    def is_plain(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype not in (*_FP8, torch.int8)

    def unpack(self, layer: str, group: Group) -> torch.Tensor:
        weight = group["weight"].float()
        if "weight_zero_point" in group:
            weight = weight - _spread(layer, group["weight_zero_point"], weight.shape, self._block)
        return weight * _spread(layer, group["weight_scale"], weight.shape, self._block)


class _PackedInts:
    """compressed-tensors, rows packed into int32 with an offset that makes values unsigned; zero points packed the
    same way, but down the columns. weight_g_idx names each column's group where columns were reordered."""

    def __init__(self, scheme: Mapping[str, Any]) -> None:
        self._bits = int(scheme["num_bits"])
        self.required = frozenset({"weight_packed", "weight_scale", "weight_shape"})
        self.suffixes = self.required
        if not scheme.get("symmetric", True):
            self.suffixes = self.suffixes | {"weight_zero_point"}
            self.required = self.suffixes
        if scheme.get("actorder") in (True, "group"):
            self.suffixes = self.suffixes | {"weight_g_idx"}

    def is_plain(self, tensor: torch.Tensor) -> bool:
        return True

    def unpack(self, layer: str, group: Group) -> torch.Tensor:
        rows, columns = (int(size) for size in group["weight_shape"].tolist())
        offset = 1 << (self._bits - 1)
        values = _unpack_bits(group["weight_packed"], self._bits)[:, :columns] - offset
        if values.shape != (rows, columns):
            raise ModelError(f"{layer}: packed to {list(values.shape)}, but weight_shape is {[rows, columns]}")
        scales = group["weight_scale"]
        zeros = torch.zeros(1)
        if "weight_zero_point" in group:
            packed = group["weight_zero_point"]
            zeros = packed if packed.shape == scales.shape else _unpack_bits(packed.T, self._bits).T[:rows] - offset
        if "weight_g_idx" in group:
            order = group["weight_g_idx"].long()
            zeros = zeros if zeros.numel() == 1 else zeros[:, order]
            return (values - zeros) * scales.float()[:, order]
        return (values - _spread(layer, zeros, values.shape)) * _spread(layer, scales, values.shape)


class _Awq:
    """(value - zero point) * scale; 8 columns of a [in, out] matrix in an int32, in AutoAWQ's order."""

    suffixes = required = frozenset({"qweight", "qzeros", "scales"})

    def __init__(self, config: Mapping[str, Any]) -> None:
        bits = config.get("bits", config.get("w_bit", 4))
        version = str(config.get("version", "gemm")).lower()
        if bits != 4:
            raise _refuse("awq", "bits", bits, "4")
        if version != "gemm":
            raise _refuse("awq", "version", version, "gemm")

    def is_plain(self, tensor: torch.Tensor) -> bool:
        return True

    def unpack(self, layer: str, group: Group) -> torch.Tensor:
        values, zeros = (self._columns(group[name]) for name in ("qweight", "qzeros"))
        scales = group["scales"].float()
        if not scales.shape[0] or values.shape[0] % scales.shape[0] or zeros.shape != scales.shape:
            raise ModelError(f"{layer}: scales of shape {list(scales.shape)} don't fit values of {list(values.shape)}")
        size = values.shape[0] // scales.shape[0]
        centred = values - zeros.repeat_interleave(size, 0)
        return (centred * scales.repeat_interleave(size, 0)).T.contiguous()

    def _columns(self, packed: torch.Tensor) -> torch.Tensor:
        nibbles = _unpack_bits(packed, 4).reshape(*packed.shape, 8)
        ordered = torch.empty_like(nibbles)
        ordered[..., list(_AWQ_COLUMNS)] = nibbles
        return ordered.flatten(-2)


class _Gptq:
    """(value - zero point) * scale; rows of a [in, out] matrix packed into int32, zero points by columns.

    Format v1 stores zero points less one. g_idx names each row's group; without it groups are runs of group_size.
    """

    required = frozenset({"qweight", "qzeros", "scales"})
    suffixes = required | {"g_idx"}

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._bits = int(config.get("bits", 4))
        form = config.get("checkpoint_format") or "gptq"
        if self._bits not in (2, 4, 8):
            raise _refuse("gptq", "bits", self._bits, "2, 4 and 8")
        if form not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
            raise _refuse("gptq", "checkpoint_format", form if form != "gptq" else "marlin", "gptq and gptq_v2")
        self._zero_offset = int(form == "gptq")
        self._needs_order = bool(config.get("desc_act"))

    def is_plain(self, tensor: torch.Tensor) -> bool:
        return True

    def unpack(self, layer: str, group: Group) -> torch.Tensor:
        values = _unpack_bits(group["qweight"].T, self._bits)  # [out, in]
        scales = group["scales"].float()  # [groups, out]
        zeros = _unpack_bits(group["qzeros"], self._bits) + self._zero_offset
        if "g_idx" in group:
            order = group["g_idx"].long()
        elif self._needs_order:
            raise ModelError(f"the quantised layer {layer} lacks g_idx, which desc_act needs")
        else:
            order = torch.arange(values.shape[1]) // -(-values.shape[1] // scales.shape[0])
        if zeros.shape != scales.shape or scales.shape[1] != values.shape[0] or order.shape != (values.shape[1],):
            raise ModelError(f"{layer}: scales of shape {list(scales.shape)} don't fit values of {list(values.shape)}")
        return (values - zeros[order].T) * scales[order].T
