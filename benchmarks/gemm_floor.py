"""The time of one step's matrix products alone: all linear layers and the head, in one CUDA graph. No server is faster
with the same library, so this is the floor of a step's time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch


class GemmFloor:
    """The matrix products of one model's shape (a Hugging Face config), in bfloat16 on the first GPU."""

    def __init__(self, shape: Mapping[str, Any]) -> None:
        hidden, inner = shape["hidden_size"], shape["intermediate_size"]
        heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
        head_dim = shape.get("head_dim") or hidden // heads
        sizes = [
            ((heads + 2 * kv_heads) * head_dim, hidden),
            (hidden, heads * head_dim),
            (2 * inner, hidden),
            (hidden, inner),
        ]
        self._layers = [[_random(size) for size in sizes] for _ in range(shape["num_hidden_layers"])]
        self._head = _random((shape["vocab_size"], hidden))
        self.milliseconds = cache(self._milliseconds)

    def _milliseconds(self, num_tokens: int, num_logits: int) -> float:
        """A step of num_tokens tokens, of which num_logits get logits."""
        inputs = {weight.shape[1]: _random((num_tokens, weight.shape[1])) for weight in self._layers[0]}
        last = _random((num_logits, self._head.shape[1]))

        def step() -> None:
            for layer in self._layers:
                for weight in layer:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            torch.nn.functional.linear(last, self._head)

        return graph_milliseconds(step)


def _random(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(size, device="cuda", dtype=torch.bfloat16) / size[1] ** 0.5


def graph_milliseconds(work: Callable[[], None], num_replays: int = 20) -> float:
    """Median time of a replay of work, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(num_replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[num_replays // 2]
