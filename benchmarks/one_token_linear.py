"""Linear layers of one token on a GPU: the bandwidth of each tiling and of the matrix library, on real models' shapes.

Weights of many layers in one CUDA graph, so that none is read from the cache. Prints the best tilings of each shape.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
import triton
from gemm_floor import graph_milliseconds
from offline import SHAPES

from plugserve.backends.torch.kernels import one_token_linear as module


def products(shape: dict) -> list[tuple[str, int, int]]:
    """(name, rows, inputs) of a layer's products and the head."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head_dim = hidden // shape["num_attention_heads"]
    qkv = (shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]) * head_dim
    layer = [("qkv", qkv, hidden), ("output", hidden, hidden), ("gate_up", 2 * inner, hidden), ("down", hidden, inner)]
    return [*layer, ("head", shape["vocab_size"], hidden)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    options = parser.parse_args()
    for name in options.shapes:
        for product, rows, size in products(SHAPES[name]):
            compare(f"{name} {product:8} {rows}x{size}", rows, size, 1 if product == "head" else 12)


def compare(title: str, rows: int, size: int, count: int) -> None:
    """Print the library's time, the chosen tiling's and the best ones', over count different weights."""
    weights = [torch.randn(rows, size, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    x = torch.randn(1, size, device="cuda", dtype=torch.bfloat16)

    def measure(linear: Callable[..., torch.Tensor]) -> float:
        return graph_milliseconds(lambda: [linear(x, one, None) for one in weights], num_replays=7) / count

    library, chosen = measure(torch.nn.functional.linear), measure(module.one_token_linear)
    choose, times = module._tiling, {}
    for tiling in tilings(size):
        module._tiling = lambda *_, tiling=tiling: tiling
        times[tiling] = measure(module.one_token_linear)
    module._tiling = choose
    best = sorted(times, key=times.get)[:3]
    line = "  ".join(f"{one} {times[one] * 1e3:.2f} us {rows * size * 2 / times[one] / 1e6:.0f} GB/s" for one in best)
    print(f"{title}: library {library * 1e3:.2f} us  chosen {chosen * 1e3:.2f} us  best {line}", flush=True)


def tilings(size: int) -> list[tuple[int, int, int]]:
    return [
        (rows, block, num_warps)
        for rows, block, num_warps in itertools.product((1, 2, 4, 8), (256, 512, 1024, 2048), (4, 8))
        if block <= triton.next_power_of_2(size) and 512 <= rows * block <= 16384
    ]


if __name__ == "__main__":
    main()
