"""The decoder: one description (DecoderSpec) in, hidden states and logits out.

Written once against StepContext; knows nothing of requests, sampling or how pages lie in memory.
Shapes: T tokens of a step, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from plugserve.core.contracts import AttentionBackend
from plugserve.core.errors import ModelError
from plugserve.core.models.decoder_spec import DecoderSpec
from plugserve.core.models.layers import (
    apply_rope,
    gated_mlp,
    inverse_frequencies,
    linear,
    rms_norm,
    rope_table,
)


@dataclass(slots=True)
class StepContext:
    """What one forward pass needs besides tokens: positions [T], the KV tensors by layer, and attention's plan."""

    positions: torch.Tensor
    kv: list[torch.Tensor]
    attention: AttentionBackend
    attention_step: Any


@dataclass(slots=True)
class DecoderLayer:
    """One layer's weights; projections that read the same input are fused ([q; k; v] and [gate; up] by rows)."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Decoder:
    """Weights of one model on one device. Built empty; load fills it."""

    def __init__(self, spec: DecoderSpec, *, dtype: torch.dtype, device: torch.device, max_positions: int) -> None:
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self._max_positions = max_positions
        self._frequencies = inverse_frequencies(spec.rope, spec.head_dim)
        self.embedding = self._empty(spec.vocab_size, spec.hidden_size)
        self.head = self.embedding if spec.ties_embeddings else self._empty(spec.vocab_size, spec.hidden_size)
        self.norm = self._empty(spec.hidden_size)
        self.layers = [self._empty_layer() for _ in range(spec.num_layers)]
        self._cos, self._sin = self._make_rope()

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _empty_layer(self) -> DecoderLayer:
        spec = self.spec
        qkv_size = spec.query_size + 2 * spec.kv_size
        return DecoderLayer(
            input_norm=self._empty(spec.hidden_size),
            qkv=self._empty(qkv_size, spec.hidden_size),
            qkv_bias=self._empty(qkv_size) if spec.has_qkv_bias else None,
            output=self._empty(spec.hidden_size, spec.query_size),
            output_bias=self._empty(spec.hidden_size) if spec.has_output_bias else None,
            mlp_norm=self._empty(spec.hidden_size),
            gate_up=self._empty(2 * spec.intermediate_size, spec.hidden_size),
            gate_up_bias=self._empty(2 * spec.intermediate_size) if spec.has_mlp_bias else None,
            down=self._empty(spec.hidden_size, spec.intermediate_size),
            down_bias=self._empty(spec.hidden_size) if spec.has_mlp_bias else None,
        )

    def _make_rope(self) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = rope_table(self._frequencies, self._max_positions, self.dtype)
        return cos.unsqueeze(1).to(self.device), sin.unsqueeze(1).to(self.device)

    @property
    def size_bytes(self) -> int:
        tensors = {id(tensor): tensor for _, tensor in self.parameters().items()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def parameters(self) -> dict[str, torch.Tensor]:
        """Where each checkpoint tensor goes: Hugging Face name -> the (view of a) tensor that it fills."""
        spec = self.spec
        places = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not spec.ties_embeddings:
            places["lm_head.weight"] = self.head
        sizes = [spec.query_size, spec.kv_size, spec.kv_size]
        for i, layer in enumerate(self.layers):
            at = f"model.layers.{i}."
            places[at + "input_layernorm.weight"] = layer.input_norm
            places[at + "post_attention_layernorm.weight"] = layer.mlp_norm
            places[at + "self_attn.o_proj.weight"] = layer.output
            places[at + "mlp.down_proj.weight"] = layer.down
            for kind, part in zip("qkv", torch.split(layer.qkv, sizes), strict=True):
                places[f"{at}self_attn.{kind}_proj.weight"] = part
            for kind, part in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
                places[f"{at}mlp.{kind}_proj.weight"] = part
            if layer.qkv_bias is not None:
                for kind, part in zip("qkv", torch.split(layer.qkv_bias, sizes), strict=True):
                    places[f"{at}self_attn.{kind}_proj.bias"] = part
            if layer.output_bias is not None:
                places[at + "self_attn.o_proj.bias"] = layer.output_bias
            if layer.gate_up_bias is not None and layer.down_bias is not None:
                for kind, part in zip(("gate", "up"), layer.gate_up_bias.chunk(2), strict=True):
                    places[f"{at}mlp.{kind}_proj.bias"] = part
                places[at + "mlp.down_proj.bias"] = layer.down_bias
        return places

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fill every parameter from (name, tensor) pairs. Raises ModelError naming what is missing or misshapen."""
        places = self.parameters()
        for name, tensor in weights:
            if name == "rope_freqs.weight":  # GGUF's way to say Llama 3 scaling
                self._frequencies = self._frequencies / tensor.float()
                self._cos, self._sin = self._make_rope()
                continue
            place = places.pop(name, None)
            if place is None:
                self._refuse_stray(name)
            elif place.shape != tensor.shape:
                raise ModelError(
                    f"tensor {name} has shape {list(tensor.shape)}, the model's config asks for {list(place.shape)}"
                )
            else:
                place.copy_(tensor)
        if places:
            missing = sorted(places)
            raise ModelError(f"the checkpoint lacks {len(missing)} tensors, first {missing[0]}")

    def _refuse_stray(self, name: str) -> None:
        """Ignore what is known to be redundant; anything else would silently change the model."""
        is_tied_head = self.spec.ties_embeddings and name == "lm_head.weight"
        if not is_tied_head and not name.endswith("rotary_emb.inv_freq"):
            raise ModelError(f"tensor {name} has no place in {self.spec.architecture}")

    def forward(self, token_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        """Hidden states [T, H] before the last norm, for T token ids; keys and values go into step.kv."""
        spec, eps = self.spec, self.spec.norm_eps
        num_tokens = token_ids.shape[0]
        num_qk = spec.num_heads + spec.num_kv_heads
        qk_size = spec.query_size + spec.kv_size
        cos, sin = self._cos[step.positions], self._sin[step.positions]
        x = self.embedding[token_ids]
        for layer, kv in zip(self.layers, step.kv, strict=True):
            qkv = linear(rms_norm(x, layer.input_norm, eps), layer.qkv, layer.qkv_bias)
            qk = apply_rope(qkv[:, :qk_size].view(num_tokens, num_qk, spec.head_dim), cos, sin)
            v = qkv[:, qk_size:].view(num_tokens, spec.num_kv_heads, spec.head_dim)
            q, k = qk[:, : spec.num_heads], qk[:, spec.num_heads :]
            attended = step.attention.run(q, k, v, kv, step.attention_step)
            x = x.add_(linear(attended.reshape(num_tokens, spec.query_size), layer.output, layer.output_bias))
            gate_up = linear(rms_norm(x, layer.mlp_norm, eps), layer.gate_up, layer.gate_up_bias)
            x = x.add_(linear(gated_mlp(gate_up), layer.down, layer.down_bias))
        return x

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 hidden states after the last norm, of hidden states [B, H] as forward returns them."""
        return rms_norm(hidden, self.norm, self.spec.norm_eps).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [B, V] of hidden states [B, H] as forward returns them."""
        return linear(rms_norm(hidden, self.norm, self.spec.norm_eps), self.head).float()


def parameter_shapes(spec: DecoderSpec) -> dict[str, torch.Size]:
    """Every checkpoint tensor's name and shape, without allocating any."""
    empty = Decoder(spec, dtype=torch.float32, device=torch.device("meta"), max_positions=1)
    return {name: place.shape for name, place in empty.parameters().items()}
