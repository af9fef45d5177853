"""What was measured on a GPU, and between GPUs: the parts that a plan's step times are put together from.

Every figure stands with its unit; docs/parallel.md says how each was measured. A file of the same form replaces them
(`plugserve plan --parts FILE`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from plugserve.core.errors import ConfigError

Pairs = tuple[tuple[float, float], ...]
"""Measured (x, y), by rising x."""


def _between(pairs: Pairs, x: float) -> float:
    """The y of x on a line between its neighbours; of the nearest pair outside."""
    if x <= pairs[0][0]:
        return pairs[0][1]
    for (low, low_y), (high, high_y) in itertools.pairwise(pairs):
        if x <= high:
            return low_y + (x - low) / (high - low) * (high_y - low_y)
    return pairs[-1][1]


class GpuParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU. weight_gb_s and layer_us are pairs by the number of rows: the rate at which a decode step reads weights;
    and a layer's time beside that: launches, norms, RoPE, activation. step_us: embedding, sampling, the host's part.
    other_gib: CUDA's context, graphs, libraries, activations."""

    memory_gib: float
    weight_gb_s: Pairs
    layer_us: Pairs
    step_us: float
    kv_gb_s: float
    matmul_tflop_s: float
    attention_tflop_s: float
    other_gib: float

    def weight_rate(self, rows: int) -> float:
        """Bytes per second."""
        return _between(self.weight_gb_s, rows) * 1e9

    def layer_s(self, rows: int) -> float:
        return _between(self.layer_us, rows) * 1e-6


class LinkParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A connection between GPUs. all_reduce_us: pairs by a message's bytes, of two GPUs; send_us and send_gb_s: from
    one GPU to another."""

    all_reduce_us: Pairs
    send_us: float
    send_gb_s: float

    def all_reduce_s(self, num_bytes: float, num_gpus: int) -> float:
        """The time of one sum over num_gpus; 0 for one. More than two: log2 as many latencies, and a ring's bytes."""
        if num_gpus == 1:
            return 0.0
        latency_us = self.all_reduce_us[0][1]
        last_bytes, last_us = self.all_reduce_us[-1]
        if num_bytes > last_bytes:
            two_us = last_us * num_bytes / last_bytes
        else:
            two_us = _between(self.all_reduce_us, num_bytes)
        ring = 2 * (num_gpus - 1) / num_gpus  # 1 for two GPUs
        return (latency_us * math.log2(num_gpus) + ring * (two_us - latency_us)) * 1e-6

    def send_s(self, num_bytes: float) -> float:
        return self.send_us * 1e-6 + num_bytes / (self.send_gb_s * 1e9)


class Parts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GPUs and links by name. origin says where figures come from; a name that it lacks was measured."""

    gpus: Mapping[str, GpuParts]
    links: Mapping[str, LinkParts]
    origin: Mapping[str, str] = {}


def _link(latency_us: float, gb_s: float) -> Pairs:
    """All-reduce of a latency and a rate."""
    return ((0.0, latency_us), (1e8, latency_us + 1e8 / (gb_s * 1e3)))


H100: Final = GpuParts(
    memory_gib=79.1,
    weight_gb_s=((1, 3030.0), (8, 2840.0), (64, 2790.0)),
    layer_us=((1, 18.0), (8, 31.0), (64, 35.0)),
    step_us=40.0,
    kv_gb_s=3000.0,
    matmul_tflop_s=640.0,
    attention_tflop_s=455.0,
    other_gib=3.0,
)

MEASURED: Final = Parts(
    gpus={
        "h100": H100,
        "h200": msgspec.structs.replace(
            H100,
            memory_gib=139.8,
            weight_gb_s=((1, 4260.0), (8, 3990.0), (64, 3920.0)),
            kv_gb_s=4220.0,
        ),
        "a100": msgspec.structs.replace(
            H100,
            memory_gib=79.2,
            weight_gb_s=((1, 1840.0), (8, 1730.0), (64, 1700.0)),
            kv_gb_s=1830.0,
            matmul_tflop_s=240.0,
            attention_tflop_s=170.0,
        ),
    },
    links={
        "nvlink": LinkParts(
            all_reduce_us=((0, 10.0), (58_000, 10.5), (460_000, 14.0), (58_700_000, 870.0)),
            send_us=10.0,
            send_gb_s=300.0,
        ),
        "pcie": LinkParts(all_reduce_us=_link(25.0, 20.0), send_us=20.0, send_gb_s=25.0),
        "ethernet": LinkParts(all_reduce_us=_link(60.0, 5.0), send_us=40.0, send_gb_s=11.0),
    },
    origin={
        "h200": "the H100's figures scaled by the cards' memory bandwidth",
        "a100": "the H100's figures scaled by the cards' bandwidth and arithmetic rate",
        "pcie": "typical figures of PCIe 5.0 x16, not measured",
        "ethernet": "typical figures of 100 Gbit/s RoCE, not measured",
    },
)


def read_parts(path: Path) -> Parts:
    """A file of parts (JSON, the fields of Parts). Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Parts)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"--parts {path}: {error}") from None
