"""Models: what an architecture, a function from a Hugging Face config, returns.

A DecoderSpec describes a decoder-only model as data, so that any backend can run it: one description covers the family
(rotary positions, grouped-query attention, gated MLP, RMS norms), and what differs between layers is data, too (see
model_files/families.py). A ModelDefinition is torch code for any other model; backends without torch decline it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from plugserve.core.contracts.attention import AttentionSpec
    from plugserve.core.contracts.lora import LoraSite
    from plugserve.core.contracts.runner import LengthRule

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

    weight_prefixes are (prefix in the checkpoint, prefix here); tensors under ignored_weights are skipped.
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

    @property
    def num_parameters(self) -> int:
        """Those of its matrices; norms and biases are left out."""
        attention = 2 * self.hidden_size * (self.query_size + self.kv_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.ties_embeddings else 2)
        return self.num_layers * (attention + mlp) + embeddings

    def rope_of(self, layer: int) -> int:
        """Index in ropes of a layer's rotary positions."""
        return self.layer_ropes[layer] if self.layer_ropes else 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor that a checkpoint brings. shape is the whole tensor's. shard_axis is the axis that is cut where several
    ranks share a model (0: outputs, 1: inputs); None: each rank holds all of it."""

    shape: tuple[int, ...]
    shard_axis: int | None = None


class ModelStep(Protocol):
    """The input of one forward pass besides its T token ids."""

    positions: torch.Tensor
    """[T] int64: where each token stands in its sequence."""
    lengths: torch.Tensor | None
    """[T]: the sequence length that a token's RoPE frequencies follow; None for models without a length_rule."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write k and v [T, num_kv_heads, head_dim] into the cache of layer, and attend with q [T, num_heads, head_dim]
        causally within each sequence. Returns [T, num_heads, head_dim]."""

    def add_lora(self, site: str, layer: int, x: torch.Tensor, y: torch.Tensor, /) -> None:
        """Add the rows' adapters' update for input x to a projection's output y (LoraSite.name)."""


@runtime_checkable
class ModelDefinition(Protocol):
    """A decoder-only model in torch: its parameters, and the way from tokens to logits.

    The runner calls allocate and load once each, then forward and logits for every step; parameters is also called
    before allocate. Keys and values lie in the runner's cache, so a forward pass sees only the tokens of its step:
    chunks of prompts and generated tokens of many sequences, one after another. Where a step is captured as a CUDA
    graph, forward and logits run without looking at device values from the host.
    """

    architecture: str
    vocab_size: int
    length_rule: LengthRule | None
    """None for models whose RoPE frequencies don't depend on a sequence's length."""
    logits_soft_cap: float | None
    """The runner bounds logits by cap * tanh(logit / cap); None: not at all."""
    lora_sites: tuple[LoraSite, ...]
    """The matrices that adapters may change; () for a model that takes none."""
    weight_prefixes: tuple[tuple[str, str], ...]
    """(prefix in the checkpoint and in adapters, prefix here); () where names are the same."""

    def attention_spec(self, dtype: str, device: str) -> AttentionSpec:
        """The attention of its layers, which determines the cache's size."""

    def parameters(self) -> Mapping[str, Parameter]:
        """Every tensor that a checkpoint must bring, by name."""

    def allocate(self, *, dtype: torch.dtype, device: torch.device, max_positions: int) -> None:
        """Allocate the parameters' tensors. All positions are below max_positions."""

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fill the tensors from (name, tensor on the CPU) pairs. Raises ModelError naming what is missing or misshapen
        (see plugserve.fill_parameters)."""

    def weight_bytes(self) -> int:
        """Device memory that the allocated parameters take."""

    def activation_bytes(self, num_tokens: int, num_rows: int) -> int:
        """About what a step of num_tokens tokens of num_rows rows takes beside parameters and cache."""

    def forward(self, token_ids: torch.Tensor, step: ModelStep) -> torch.Tensor:
        """Hidden states [T, H] before the last norm, for token ids [T]."""

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 hidden states after the last norm, of [B, H] as forward returns them: what embeddings pool."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] in the model's dtype, of hidden states [B, H] as forward returns them."""
