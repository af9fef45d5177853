"""Tiny decoders with random weights for the native backend, and the same in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from plugserve.backends.cpu.library import find_library
from plugserve.backends.cpu.model_weights import ModelWeights, collect, pack_floats, parameter_shapes
from plugserve.backends.cpu.native_forward import NativeForward
from plugserve.backends.cpu.native_settings import NativeSettings
from plugserve.core.contracts.model import DecoderSpec, RopeSpec

LIBRARY = find_library()
needs_library = pytest.mark.skipif(isinstance(LIBRARY, str), reason=f"no native library: {LIBRARY}")
LEVELS = [] if isinstance(LIBRARY, str) else list(range(len(LIBRARY.ps_levels().split()) + 1))
FORMATS = ("none", "int8", "int4")

SPEC = DecoderSpec(
    architecture="Tiny",
    num_layers=2,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=97,
    norm_eps=1e-5,
    ropes=(RopeSpec(10000.0),),
)
SPECS = {
    "plain": SPEC,
    "one kv head, tied": replace(SPEC, num_kv_heads=1, ties_embeddings=True),
    "narrow heads, biases": replace(SPEC, head_dim=16, has_qkv_bias=True, has_output_bias=True, has_mlp_bias=True),
    "windows, caps, norms": replace(
        SPEC,
        windows=(24, None),
        ropes=(RopeSpec(10000.0), RopeSpec(500.0, kind="linear", scaling={"factor": 4.0})),
        layer_ropes=(0, 1),
        activation="gelu_pytorch_tanh",
        attention_soft_cap=20.0,
        logits_soft_cap=15.0,
        embedding_scale=8.0,
        norms_are_offset=True,
        has_qk_norms=True,
        has_post_norms=True,
        attention_scale=0.2,
    ),
    "odd sizes, partly rotated": replace(
        SPEC, hidden_size=72, intermediate_size=100, num_heads=3, num_kv_heads=3, head_dim=48,
        ropes=(RopeSpec(10000.0, rotary_factor=0.5),), activation="gelu",
    ),
}  # fmt: skip


def floats(spec: DecoderSpec, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    scale = {name: 0.3 if len(shape) == 1 else shape[-1] ** -0.5 for name, shape in parameter_shapes(spec).items()}
    return {
        name: (draw.standard_normal(shape) * scale[name]).astype(np.float32)
        for name, shape in parameter_shapes(spec).items()
    }


def packed(spec: DecoderSpec, quantization: str) -> ModelWeights:
    made = floats(spec).items()
    return collect(((n, v if v.ndim < 2 else pack_floats(v, quantization)) for n, v in made), spec)


def make_forward(spec=SPEC, quantization="none", **changes) -> NativeForward:
    settings = NativeSettings(
        threads=1,
        max_model_len=256,
        model_max_len=256,
        block_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        kv_cache_memory=None,
        num_blocks=60,
        swap_space=0.001,
    )
    return NativeForward(LIBRARY, spec, replace(settings, **changes), lambda: packed(spec, quantization))
