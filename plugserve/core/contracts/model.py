"""The description of a decoder-only model: everything that its code needs to know, as data. Torch-free.

One description covers the family (rotary positions, grouped-query attention, gated MLP, RMS norms); an architecture is
a function from a Hugging Face config to it (see families.py). What differs between layers is data here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROPE_KINDS: Mapping[str, str] = {
    "default": "RoFormer's rotary embedding",
    "linear": "positions divided by a factor",
    "dynamic": "NTK-aware: the base grows with a sequence longer than the model's context",
    "llama3": "long wavelengths stretched, short ones kept (Llama 3.1)",
    "yarn": "by parts, and a factor on attention (YaRN)",
    "longrope": "one divisor a frequency, and a second set for sequences longer than the original context (LongRoPE)",
}
"""RoPE kinds, and half a line on each."""

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions. kind is one of ROPE_KINDS, scaling holds that kind's own parameters by Hugging Face's names.

    Only the first rotary_factor of each head is rotated. context is the length that the model was made for
    (max_position_embeddings), which "dynamic" and "longrope" measure sequences by.
    """

    theta: float
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    rotary_factor: float = 1.0
    context: int = 0

    @property
    def length_border(self) -> int | None:
        """The frequencies of sequences longer than this depend on their length; None where they never do."""
        if self.kind == "dynamic":
            return self.context
        return int(self.scaling["original_max_position_embeddings"]) if self.kind == "longrope" else None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """num_heads query heads of head_dim share num_kv_heads key/value heads. activation names the MLP's gate.

    By layer: windows[i] is layer i's sliding window in tokens (a token sees itself and window - 1 before it) or None;
    ropes[layer_ropes[i]] are its rotary positions. An empty tuple means no windows, and ropes[0] everywhere.

    attention_scale multiplies q @ k (None: head_dim ** -0.5). norms_are_offset: a norm multiplies by 1 + its weight.
    has_qk_norms: queries and keys are normed head by head before they are rotated. has_post_norms: attention's and the
    MLP's outputs are normed, too, before they are added. The soft caps bound scores and logits by cap * tanh(x / cap).

    weight_prefixes are (prefix in the checkpoint, prefix here); tensors under ignored_weights are passed over.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    ropes: tuple[RopeSpec, ...]
    layer_ropes: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    activation: str = "silu"
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logits_soft_cap: float | None = None
    embedding_scale: float | None = None
    norms_are_offset: bool = False
    has_qk_norms: bool = False
    has_post_norms: bool = False
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    ties_embeddings: bool = False
    weight_prefixes: tuple[tuple[str, str], ...] = ()
    ignored_weights: tuple[str, ...] = ()

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def rope_of(self, layer: int) -> int:
        """Index in ropes of a layer's rotary positions."""
        return self.layer_ropes[layer] if self.layer_ropes else 0
