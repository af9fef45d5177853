"""A model in the native library: weights placed in its memory, and a config that points at them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugserve.backends.cpu.arena import Arena
from plugserve.backends.cpu.library import Layer, Matrix, ModelConfig, Rope, Step
from plugserve.backends.cpu.model_weights import ROPE_DIVISORS, ModelWeights
from plugserve.backends.cpu.packing import Packed
from plugserve.backends.cpu.rope_tables import rope_tables
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ModelError

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}  # enum ps_activation
_ERROR_SIZE = 500


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model is made for; num_threads compute a step, level -1 is the best instruction set."""

    block_size: int
    num_blocks: int
    max_tokens: int
    max_rows: int
    max_len: int
    num_threads: int
    level: int = -1


class NativeModel:
    """Owns the library's model and all memory that it reads."""

    def __init__(self, library: ctypes.CDLL, spec: DecoderSpec) -> None:
        self._library = library
        self._spec = spec
        self._arena = Arena()
        self._handle: int | None = None
        self.kv: Any = None
        """The cache's bytes [blocks, bytes of a block]."""

    @property
    def num_bytes(self) -> int:
        """Of weights and tables."""
        return self._arena.num_bytes

    def place(self, weights: ModelWeights, max_len: int) -> None:
        """Copy weights into the library's memory."""
        spec, vector, arena = self._spec, weights.vector, self._arena
        offset = np.float32(1.0 if spec.norms_are_offset else 0.0)

        def norm(name: str) -> int:
            return arena.place(vector(f"{name}.weight") + offset)

        def matrix(name: str) -> Matrix:
            bias = weights.vectors.get(f"{name}.bias")
            return self._matrix(weights.matrices.pop(f"{name}.weight"), bias)  # not kept twice

        self._layers = (Layer * spec.num_layers)()
        for i in range(spec.num_layers):
            name = f"model.layers.{i}."
            attention, mlp = name + "self_attn.", name + "mlp."
            mlp_norm = "pre_feedforward_layernorm" if spec.has_post_norms else "post_attention_layernorm"
            self._layers[i] = Layer(
                q=matrix(attention + "q_proj"),
                k=matrix(attention + "k_proj"),
                v=matrix(attention + "v_proj"),
                o=matrix(attention + "o_proj"),
                gate=matrix(mlp + "gate_proj"),
                up=matrix(mlp + "up_proj"),
                down=matrix(mlp + "down_proj"),
                input_norm=norm(name + "input_layernorm"),
                mlp_norm=norm(name + mlp_norm),
                q_norm=norm(attention + "q_norm") if spec.has_qk_norms else None,
                k_norm=norm(attention + "k_norm") if spec.has_qk_norms else None,
                post_attention_norm=norm(name + "post_attention_layernorm") if spec.has_post_norms else None,
                post_mlp_norm=norm(name + "post_feedforward_layernorm") if spec.has_post_norms else None,
                window=(spec.windows[i] or 0) if spec.windows else 0,
                rope=spec.rope_of(i),
            )
        self._embedding = matrix("model.embed_tokens")
        self._head = self._embedding if spec.ties_embeddings else matrix("lm_head")
        self._final_norm = norm("model.norm")
        self._ropes = (Rope * len(spec.ropes))()
        for i, rope in enumerate(spec.ropes):
            cos, sin = rope_tables(rope, spec.head_dim, max_len, weights.vectors.get(ROPE_DIVISORS))
            self._ropes[i] = Rope(arena.place(cos), arena.place(sin), 2 * cos.shape[1])

    def _matrix(self, packed: Packed, bias: Any) -> Matrix:
        place = self._arena.place
        return Matrix(
            format=packed.format,
            n=packed.n,
            k=packed.k,
            group=packed.group,
            zero=packed.zero,
            codes=place(packed.codes),
            scales=None if packed.scales is None else place(packed.scales),
            minima=None if packed.minima is None else place(packed.minima),
            bias=None if bias is None else place(bias),
        )

    def bytes_per_block(self, block_size: int) -> int:
        spec = self._spec
        config = ModelConfig(
            num_layers=spec.num_layers, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, block_size=block_size
        )
        return int(self._library.ps_kv_bytes_per_block(ctypes.byref(config)))

    def start(self, sizes: Sizes) -> None:
        """Allocate the cache and start the threads. Raises ModelError."""
        spec = self._spec
        self._cache = Arena()
        block_bytes = self.bytes_per_block(sizes.block_size)
        self.kv = self._cache.take(block_bytes * sizes.num_blocks).reshape(sizes.num_blocks, block_bytes)
        config = ModelConfig(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab_size=spec.vocab_size,
            activation=_ACTIVATIONS[spec.activation],
            norm_eps=spec.norm_eps,
            attention_scale=spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
            attention_soft_cap=spec.attention_soft_cap or 0.0,
            logits_soft_cap=spec.logits_soft_cap or 0.0,
            embedding_scale=1.0 if spec.embedding_scale is None else spec.embedding_scale,
            layers=self._layers,
            ropes=self._ropes,
            embedding=self._embedding,
            head=self._head,
            final_norm=self._final_norm,
            block_size=sizes.block_size,
            num_blocks=sizes.num_blocks,
            kv=self.kv.ctypes.data,
            max_tokens=sizes.max_tokens,
            max_rows=sizes.max_rows,
            max_len=sizes.max_len,
            num_threads=sizes.num_threads,
            level=sizes.level,
        )
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        self._handle = self._library.ps_create(ctypes.byref(config), error, _ERROR_SIZE)
        if not self._handle:
            raise ModelError(f"the native CPU backend can't run this model: {error.value.decode()}")

    def compute(self, step: Step) -> None:
        """Raises RuntimeError for a step outside the model's sizes."""
        fault = self._library.ps_compute(self._handle, ctypes.byref(step))
        if fault:
            reason = "a token outside the vocabulary" if fault == 2 else "more tokens or rows than planned"
            raise RuntimeError(f"the native step has {reason}")

    def logits(self, hidden: Any) -> Any:
        """[N, V] of states [N, H] after the last norm."""
        hidden = np.ascontiguousarray(hidden, dtype=np.float32)
        logits = np.empty((len(hidden), self._spec.vocab_size), dtype=np.float32)
        self._library.ps_logits(self._handle, len(hidden), hidden.ctypes.data, logits.ctypes.data)
        return logits

    def close(self) -> None:
        if self._handle:
            self._library.ps_destroy(self._handle)
            self._handle = None
