"""Weights from a GGUF file, dequantised to float32 and named as Hugging Face names them.

Tensors are dequantised a few ahead of their consumer by a small thread pool (numpy works outside the GIL for most of
it), so memory holds a handful of float32 tensors beside those that the consumer keeps.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from plugserve.backends.torch.weights.gguf_blocks import dequantize
from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_config import ROPE_FACTORS, GgufArchitecture, gguf_architecture, gguf_config
from plugserve.core.model_files.gguf_file import GgufFile, GgufTensor, read_gguf, refuse_unread_types

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_MAX_THREADS = 4

_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
    ROPE_FACTORS: ROPE_FACTORS,
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_IGNORED = re.compile(
    r"blk\.\d+\.(attn_rot_embd|attn\.rotary_emb\.inv_freq)(\.weight)?|rope_factors_(long|short)\.weight"
)


def iterate_gguf(path: Path, *, show_progress: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face's name, float32 tensor) of every tensor. Types and names are checked before it returns."""
    gguf = read_gguf(path)
    architecture = gguf_architecture(gguf)
    config = gguf_config(gguf)
    refuse_unread_types(gguf)
    work = [
        (tensor, name, _finish(tensor, architecture, config))
        for tensor in gguf.tensors.values()
        if (name := hugging_face_name(gguf, tensor.name)) is not None
    ]
    return _read_tensors(path, work, show_progress)


def hugging_face_name(gguf: GgufFile, name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor; None for one that repeats the metadata."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    if _IGNORED.fullmatch(name):
        return None
    match = _LAYER.fullmatch(name)
    names = _LAYER_NAMES
    if gguf.architecture in ("gemma2", "gemma3"):
        names = names | _FOUR_NORMS
    elif gguf_architecture(gguf).has_fused_projections:
        names = names | _FUSED
    if match is None or match[2] not in names:
        raise ModelError(f"{gguf.path}: tensor {name!r} is not one that a {gguf.architecture!r} model should have")
    return f"model.layers.{match[1]}.{names[match[2]]}.{match[3]}"


def _finish(
    tensor: GgufTensor, architecture: GgufArchitecture, config: dict[str, Any]
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Undo what the converter changed in a tensor."""
    if architecture.has_interleaved_rope and ".attn_q." in tensor.name:
        return lambda values: split_rope_halves(values, config["num_attention_heads"])
    if architecture.has_interleaved_rope and ".attn_k." in tensor.name:
        return lambda values: split_rope_halves(values, config["num_key_value_heads"])
    if architecture.norm_offset and tensor.name.endswith("norm.weight"):
        return lambda values: values - np.float32(architecture.norm_offset)
    return lambda values: values


def split_rope_halves(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of each head from pairs (0, d/2, 1, d/2+1, ...) back to halves (0 .. d/2-1, d/2 .. d-1)."""
    rows = values.shape[0]
    if rows % (2 * num_heads):
        raise ModelError(f"a q or k tensor has {rows} rows, not a multiple of 2 x {num_heads} heads")
    paired = values.reshape(num_heads, rows // num_heads // 2, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)


def _read_tensors(
    path: Path, work: list[tuple[GgufTensor, str, Callable[[NDArray[np.float32]], NDArray[np.float32]]]], show: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    file = np.memmap(path, dtype=np.uint8, mode="r")

    def read(tensor: GgufTensor, finish: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> NDArray[np.float32]:
        data = file[tensor.offset : tensor.offset + tensor.num_bytes]
        return np.ascontiguousarray(finish(dequantize(np.asarray(data), tensor.type_name, tensor.shape)))

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    total = sum(tensor.num_bytes for tensor, _, _ in work)
    bar = tqdm(
        total=total,
        desc=f"Loading {path.name}",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not show,
        file=sys.stderr,
    )
    with bar, ThreadPoolExecutor(threads, "dequantize") as pool:
        ahead: deque[tuple[GgufTensor, str, Future[NDArray[np.float32]]]] = deque()
        upcoming = iter(work)
        try:
            for tensor, name, finish in upcoming:
                ahead.append((tensor, name, pool.submit(read, tensor, finish)))
                if len(ahead) > 2 * threads:
                    yield _take(ahead, bar, torch)
            while ahead:
                yield _take(ahead, bar, torch)
        finally:
            for _, _, future in ahead:
                future.cancel()


def _take(ahead: deque[tuple[GgufTensor, str, Future[Any]]], bar: Any, torch: Any) -> tuple[str, torch.Tensor]:
    tensor, name, future = ahead.popleft()
    values = future.result()
    bar.update(tensor.num_bytes)
    return name, torch.from_numpy(values)
