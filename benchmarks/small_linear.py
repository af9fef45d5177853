"""Linear layers of few tokens on a GPU: each tiling's bandwidth beside the matrix library's, on the shapes of real models.

Weights of many layers in one CUDA graph, so that none comes from the cache. Prints the best tilings a shape.
"""

from __future__ import annotations

import argparse
import itertools

import torch
import triton
from gemm_floor import graph_milliseconds
from offline import SHAPES

from plugserve.core.kernels import small_linear as module


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
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4])
    options = parser.parse_args()
    for name, num_tokens in itertools.product(options.shapes, options.tokens):
        for product, rows, size in products(SHAPES[name]):
            count = 1 if product == "head" else 12
            weights = [torch.randn(rows, size, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
            x = torch.randn(num_tokens, size, device="cuda", dtype=torch.bfloat16)
            chosen = module._tiling(rows, size, triton.next_power_of_2(num_tokens))
            times = {"library": measure(lambda: [torch.nn.functional.linear(x, one) for one in weights], count)}
            for tiling in tilings(size, num_tokens):
                module._tiling = lambda *_, tiling=tiling: tiling
                times[tiling] = measure(lambda: [module.small_linear(x, one, None) for one in weights], count)
            best = sorted(times, key=times.get)[:3]
            line = "  ".join(
                f"{one} {times[one] * 1e3:.2f} us {rows * size * 2 / times[one] / 1e6:.0f} GB/s" for one in best
            )
            print(f"{name} {num_tokens} {product:8} {rows}x{size}: library {times['library'] * 1e3:.2f} us", end="  ")
            print(f"chosen {chosen} {times.get(chosen, 0) * 1e3:.2f} us  best {line}", flush=True)


def tilings(size: int, num_tokens: int) -> list[tuple[int, int, int]]:
    tokens = triton.next_power_of_2(num_tokens)
    return [
        (rows, block, num_warps)
        for rows, block, num_warps in itertools.product((1, 2, 4, 8), (256, 512, 1024, 2048), (4, 8))
        if block <= triton.next_power_of_2(size) and 512 <= rows * block and rows * block * tokens <= 16384
    ]


def measure(work, count: int) -> float:
    return graph_milliseconds(work, num_replays=7) / count


if __name__ == "__main__":
    main()
