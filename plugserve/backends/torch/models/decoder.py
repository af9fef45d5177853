"""The decoder: one description (DecoderSpec) in, hidden states and logits out.

Written once against StepContext; knows nothing of requests, sampling or how pages lie in memory.
Shapes: T tokens of a step, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch

from plugserve.backends.torch.models.layers import LayerOperations, PlainLayers, rms_norm, soft_cap
from plugserve.backends.torch.models.lora_sites import NO_LORA, LoraStep
from plugserve.backends.torch.models.rope import make_rope
from plugserve.core.contracts.attention import AttentionBackend
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ModelError

ROPE_FREQUENCY_DIVISORS = "rope_freqs.weight"
"""GGUF's way to say Llama 3's RoPE scaling: a tensor that is no parameter."""


@dataclass(slots=True)
class StepContext:
    """What one forward pass needs besides tokens: positions [T], the KV tensors by layer, and attention's plan.

    lengths [T] are what RoPE kinds ask for that depend on a sequence's length (see rope.py); None where none does.
    lora adds the rows' adapters to the four fused projections of each layer.
    """

    positions: torch.Tensor
    kv: list[torch.Tensor]
    attention: AttentionBackend
    attention_step: Any
    lengths: torch.Tensor | None = None
    lora: LoraStep = NO_LORA


@dataclass(slots=True)
class DecoderLayer:
    """One layer's weights; projections that read the same input are fused ([q; k; v] and [gate; up] by rows).

    post_attention_norm and post_mlp_norm are those of spec.has_post_norms, q_norm and k_norm of spec.has_qk_norms.
    rope is the index of the layer's rotary positions.
    """

    rope: int
    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_attention_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None
    post_mlp_norm: torch.Tensor | None


class Decoder:
    """Weights of one model on one device. Built empty; load fills it."""

    def __init__(self, spec: DecoderSpec, *, dtype: torch.dtype, device: torch.device, max_positions: int) -> None:
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self._operations = _operations(spec, device)
        self._norm_dtype = torch.float32 if spec.norms_are_offset else dtype
        # rounded to dtype, as transformers does
        scale = spec.embedding_scale
        self._embedding_scale = None if scale is None else torch.tensor(scale, dtype=dtype).item()
        self._ropes = [
            make_rope(rope, spec.head_dim, num_positions=max_positions, dtype=dtype, device=device)
            for rope in spec.ropes
        ]
        self.embedding = self._empty(spec.vocab_size, spec.hidden_size)
        self.head = self.embedding if spec.ties_embeddings else self._empty(spec.vocab_size, spec.hidden_size)
        self.norm = self._empty_norm(spec.hidden_size)
        self.layers = [self._empty_layer(i) for i in range(spec.num_layers)]

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _empty_norm(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=self._norm_dtype, device=self.device)

    def _empty_layer(self, index: int) -> DecoderLayer:
        spec = self.spec
        qkv_size = spec.query_size + 2 * spec.kv_size
        return DecoderLayer(
            rope=spec.rope_of(index),
            input_norm=self._empty_norm(spec.hidden_size),
            qkv=self._empty(qkv_size, spec.hidden_size),
            qkv_bias=self._empty(qkv_size) if spec.has_qkv_bias else None,
            q_norm=self._empty_norm(spec.head_dim) if spec.has_qk_norms else None,
            k_norm=self._empty_norm(spec.head_dim) if spec.has_qk_norms else None,
            output=self._empty(spec.hidden_size, spec.query_size),
            output_bias=self._empty(spec.hidden_size) if spec.has_output_bias else None,
            post_attention_norm=self._empty_norm(spec.hidden_size) if spec.has_post_norms else None,
            mlp_norm=self._empty_norm(spec.hidden_size),
            gate_up=self._empty(2 * spec.intermediate_size, spec.hidden_size),
            gate_up_bias=self._empty(2 * spec.intermediate_size) if spec.has_mlp_bias else None,
            down=self._empty(spec.hidden_size, spec.intermediate_size),
            down_bias=self._empty(spec.hidden_size) if spec.has_mlp_bias else None,
            post_mlp_norm=self._empty_norm(spec.hidden_size) if spec.has_post_norms else None,
        )

    @property
    def size_bytes(self) -> int:
        tensors = {id(tensor): tensor for tensor in self._tensors()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from (self.embedding, self.head, self.norm)
        for layer in self.layers:
            for field in fields(layer):
                value = getattr(layer, field.name)
                if isinstance(value, torch.Tensor):
                    yield value

    # ---- weights

    def parameters(self) -> dict[str, torch.Tensor]:
        """Where each checkpoint tensor goes: Hugging Face name -> the (view of a) tensor that it fills."""
        places = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not self.spec.ties_embeddings:
            places["lm_head.weight"] = self.head
        for i, layer in enumerate(self.layers):
            for name, place in self._layer_parameters(layer):
                if place is not None:
                    places[f"model.layers.{i}.{name}"] = place
        return places

    def _layer_parameters(self, layer: DecoderLayer) -> Iterator[tuple[str, torch.Tensor | None]]:
        for _, _, parts in self._fused(layer):
            yield from parts.items()
        yield "input_layernorm.weight", layer.input_norm
        yield "self_attn.q_norm.weight", layer.q_norm
        yield "self_attn.k_norm.weight", layer.k_norm
        yield "self_attn.o_proj.weight", layer.output
        yield "self_attn.o_proj.bias", layer.output_bias
        yield "mlp.down_proj.weight", layer.down
        yield "mlp.down_proj.bias", layer.down_bias
        if self.spec.has_post_norms:
            yield "post_attention_layernorm.weight", layer.post_attention_norm
            yield "pre_feedforward_layernorm.weight", layer.mlp_norm
            yield "post_feedforward_layernorm.weight", layer.post_mlp_norm
        else:
            yield "post_attention_layernorm.weight", layer.mlp_norm

    def _fused(self, layer: DecoderLayer) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
        """(name of the fused tensor, its place, the names and places of its parts); checkpoints have either."""
        sizes = [self.spec.query_size, self.spec.kv_size, self.spec.kv_size]
        for kind, qkv, gate_up in (
            ("weight", layer.qkv, layer.gate_up),
            ("bias", layer.qkv_bias, layer.gate_up_bias),
        ):
            if qkv is not None:
                names = [f"self_attn.{part}_proj.{kind}" for part in "qkv"]
                yield f"self_attn.qkv_proj.{kind}", qkv, dict(zip(names, torch.split(qkv, sizes), strict=True))
            if gate_up is not None:
                names = [f"mlp.{part}_proj.{kind}" for part in ("gate", "up")]
                yield f"mlp.gate_up_proj.{kind}", gate_up, dict(zip(names, gate_up.chunk(2), strict=True))

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fill every parameter from (name, tensor) pairs. Raises ModelError naming what is missing or misshapen."""
        places = self.parameters()
        fused = {
            f"model.layers.{i}.{name}": (place, [f"model.layers.{i}.{part}" for part in parts])
            for i, layer in enumerate(self.layers)
            for name, place, parts in self._fused(layer)
        }
        for given_name, tensor in weights:
            name = self._own_name(given_name)
            if name == ROPE_FREQUENCY_DIVISORS:
                for rope in self._ropes:
                    rope.divide(tensor)
                continue
            place = places.pop(name, None)
            if place is None and name in fused and places.keys() >= set(fused[name][1]):
                place, parts = fused[name]
                for part in parts:
                    del places[part]
            if place is None:
                self._refuse_stray(name, given_name)
            elif place.shape != tensor.shape:
                raise ModelError(
                    f"tensor {given_name} has shape {list(tensor.shape)}, the model's config asks for "
                    f"{list(place.shape)}"
                )
            elif self.spec.norms_are_offset and name.endswith("norm.weight"):
                place.copy_(tensor.float() + 1)
            else:
                place.copy_(tensor)
        if places:
            missing = sorted(places)
            raise ModelError(f"the checkpoint lacks {len(missing)} tensors, first {missing[0]}")

    def _own_name(self, name: str) -> str:
        for theirs, ours in self.spec.weight_prefixes:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name

    def _refuse_stray(self, name: str, given_name: str) -> None:
        """Ignore what is known to be redundant; anything else would silently change the model."""
        is_tied_head = self.spec.ties_embeddings and name == "lm_head.weight"
        is_ignored = name.endswith("rotary_emb.inv_freq") or given_name.startswith(self.spec.ignored_weights)
        if not (is_tied_head or is_ignored):
            raise ModelError(f"tensor {given_name} has no place in {self.spec.architecture}")

    # ---- forward

    def forward(self, token_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        """Hidden states [T, H] before the last norm, for T token ids; keys and values go into step.kv."""
        spec, do = self.spec, self._operations
        angles = [rope.angles(step.positions, step.lengths) for rope in self._ropes]
        x = self.embedding[token_ids]
        if self._embedding_scale is not None:
            x *= self._embedding_scale
        next_norms = [layer.input_norm for layer in self.layers[1:]] + [None]
        normed = do.norm(x, self.layers[0].input_norm)
        add_lora = step.lora.add
        for i, (layer, kv, next_norm) in enumerate(zip(self.layers, step.kv, next_norms, strict=True)):
            qkv = do.linear(normed, layer.qkv, layer.qkv_bias)
            add_lora("qkv", i, normed, qkv)
            q, k, v = do.heads(qkv, layer.q_norm, layer.k_norm, angles[layer.rope])
            attended = step.attention.run(q, k, v, kv, step.attention_step, i).reshape(-1, spec.query_size)
            added = do.linear(attended, layer.output, layer.output_bias)
            add_lora("o", i, attended, added)
            normed = do.add_norm(x, added, layer.post_attention_norm, layer.mlp_norm)
            gate_up = do.linear(normed, layer.gate_up, layer.gate_up_bias)
            add_lora("gate_up", i, normed, gate_up)
            gated = do.gated_mlp(gate_up)
            added = do.linear(gated, layer.down, layer.down_bias)
            add_lora("down", i, gated, added)
            normed = do.add_norm(x, added, layer.post_mlp_norm, next_norm)
        return x

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 hidden states after the last norm, of hidden states [B, H] as forward returns them."""
        return rms_norm(hidden, self.norm, self.spec.norm_eps).float()

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] in the model's dtype, before the soft cap, of hidden states [B, H] as forward returns them."""
        return self._operations.linear(self._operations.norm(hidden, self.norm), self.head)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits [B, V] of hidden states [B, H] as forward returns them."""
        return self.capped(self.raw_logits(hidden))

    def capped(self, raw_logits: torch.Tensor) -> torch.Tensor:
        """float32 logits of raw ones."""
        logits = raw_logits.float()
        return logits if self.spec.logits_soft_cap is None else soft_cap(logits, self.spec.logits_soft_cap)

    def activation_bytes(self, num_tokens: int, num_rows: int) -> int:
        """About what a step of num_tokens tokens of num_rows rows takes beside weights and KV."""
        spec = self.spec
        widest = max(3 * spec.intermediate_size, 2 * (spec.query_size + 2 * spec.kv_size)) + 4 * spec.hidden_size
        return num_tokens * widest * self.embedding.element_size() + num_rows * spec.vocab_size * 16


def _operations(spec: DecoderSpec, device: torch.device) -> LayerOperations:
    """The fused kernels where Triton can run them, else plain torch."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from plugserve.backends.torch.kernels.fused_layers import FusedLayers

        return FusedLayers(spec)
    return PlainLayers(spec)


def parameter_shapes(spec: DecoderSpec) -> dict[str, torch.Size]:
    """Every checkpoint tensor's name and shape, without allocating any."""
    empty = Decoder(spec, dtype=torch.float32, device=torch.device("meta"), max_positions=1)
    return {name: place.shape for name, place in empty.parameters().items()}
