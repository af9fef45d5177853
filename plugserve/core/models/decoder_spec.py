"""The description of a decoder-only model: everything that its code needs to know, as data. Knows nothing of torch.

One description covers the family (pre-norm decoder, rotary positions, grouped-query attention, gated MLP); an
architecture is a function from a Hugging Face config to it (see registry.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions: kind is "default", "linear" or "llama3"; scaling holds that kind's own parameters."""

    theta: float
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """num_heads query heads of head_dim share num_kv_heads key/value heads. activation names the MLP's gate."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: RopeSpec
    activation: str = "silu"
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    ties_embeddings: bool = False

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim
