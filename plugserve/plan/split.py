"""A way of putting a model on several GPUs, and what its steps take there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from plugserve.plan.model_shape import ModelShape
from plugserve.plan.parts import GpuParts, LinkParts

_OVERLAP = 4.0
"""Reading weights and computing overlap; where both take about as long, their sum's norm of this order is longer than
either, as measured."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """GPUs of one kind: near connects those of a node, far those of different nodes."""

    gpu: GpuParts
    near: LinkParts
    far: LinkParts
    gpus_per_node: int


@dataclass(frozen=True, slots=True)
class Split:
    """tp GPUs share each layer, pp stages hold a range of layers each, and dp engines hold the whole model each."""

    tp: int
    pp: int
    dp: int

    @property
    def num_gpus(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        return f"TP {self.tp} x PP {self.pp} x DP {self.dp}"


class SplitCosts:
    """The memory and the step times of one engine of a split; times are in seconds."""

    def __init__(self, shape: ModelShape, split: Split, cluster: Cluster) -> None:
        self._shape, self._split, self._gpu = shape, split, cluster.gpu
        self._stage_layers = math.ceil(shape.num_layers / split.pp)
        self._sum_link = cluster.near if split.tp <= cluster.gpus_per_node else cluster.far
        engine_gpus = split.tp * split.pp
        self._send_link = cluster.near if engine_gpus <= cluster.gpus_per_node else cluster.far

    # ---- memory of the fullest GPU

    @property
    def weight_bytes(self) -> float:
        shape, tp = self._shape, self._split.tp
        layers = self._stage_layers * shape.layer_parameters / tp
        ends = shape.head_parameters / tp * (2 if shape.has_own_head and self._split.pp == 1 else 1)
        return (layers + ends) * shape.weight_size

    @property
    def kv_bytes_per_token(self) -> float:
        return self._shape.kv_bytes(self._stage_layers, self._split.tp)

    def num_kv_tokens(self, utilisation: float) -> int:
        """Tokens whose keys and values fit beside the weights; 0 where these alone don't fit."""
        gib = self._gpu.memory_gib * utilisation - self._gpu.other_gib
        return max(0, int((gib * 2**30 - self.weight_bytes) / self.kv_bytes_per_token))

    # ---- a stage's step

    def _sums_s(self, num_tokens: int) -> float:
        """Two sums a layer of this stage."""
        shape, split = self._shape, self._split
        size = num_tokens * shape.hidden_size * 2.0
        return 2 * self._stage_layers * self._sum_link.all_reduce_s(size, split.tp)

    def _stage_decode_s(self, rows: int, context: float) -> float:
        """Reading the stage's weights (or computing with them, from some hundred rows on) and keys and values."""
        shape, gpu, tp = self._shape, self._gpu, self._split.tp
        parameters = (self._stage_layers * shape.layer_parameters + shape.head_parameters) / tp
        reading_s = parameters * shape.weight_size / gpu.weight_rate(rows)
        computing_s = 2 * parameters * rows / (gpu.matmul_tflop_s * 1e12)
        kv_s = rows * context * self.kv_bytes_per_token / (gpu.kv_gb_s * 1e9)
        matrix_s: float = (reading_s**_OVERLAP + computing_s**_OVERLAP) ** (1 / _OVERLAP)
        return matrix_s + kv_s + self._stage_layers * gpu.layer_s(rows) + self._sums_s(rows)

    def _hop_s(self, num_tokens: int) -> float:
        if self._split.pp == 1:
            return 0.0
        return self._send_link.send_s(num_tokens * self._shape.hidden_size * 2.0)

    # ---- an engine's step

    def decode_s(self, rows: int, context: float) -> float:
        """From one token of a row to its next: with stages, rows are in as many groups; each passes them all."""
        pp = self._split.pp
        group = max(1, math.ceil(rows / pp))
        return pp * (self._stage_decode_s(group, context) + self._hop_s(group)) + self._gpu.step_us * 1e-6

    def prompt_rate(self, prompt: int, chunk: int) -> float:
        """Prompt tokens a second, with every stage busy, in steps of chunk tokens of prompts of this length."""
        shape, gpu, tp = self._shape, self._gpu, self._split.tp
        layers = self._stage_layers
        matrix_s = 2 * layers * shape.layer_parameters / tp * chunk / (gpu.matmul_tflop_s * 1e12)
        pairs = chunk * (prompt + 1) / 2
        attention_s = 4 * layers * shape.num_heads / tp * shape.head_dim * pairs / (gpu.attention_tflop_s * 1e12)
        fixed_s = layers * gpu.layer_s(chunk) + gpu.step_us * 1e-6
        return chunk / (matrix_s + attention_s + fixed_s + self._sums_s(chunk) + self._hop_s(chunk))

    def first_token_s(self, prompt: int, chunk: int) -> float:
        """A lone prompt: its chunks pass the stages one after another."""
        chunks = math.ceil(prompt / chunk)
        stage_s = min(prompt, chunk) / self.prompt_rate(prompt, min(prompt, chunk))
        return (chunks + self._split.pp - 1) * stage_s
