"""The decoder: the ModelDefinition made from a DecoderSpec.

A layer is an attention block and an MLP (parts.py) with norms around them; either kind can be replaced by another part.
Shapes: T tokens of a step, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from plugserve.backends.torch.models.attention_block import AttentionBlock
from plugserve.backends.torch.models.checkpoint_names import own_tensors
from plugserve.backends.torch.models.collectives import SINGLE_RANK, Collectives
from plugserve.backends.torch.models.dense_mlp import DenseMlp
from plugserve.backends.torch.models.layers import LayerOperations, PlainLayers, rms_norm
from plugserve.backends.torch.models.lora_sites import decoder_sites
from plugserve.backends.torch.models.parts import Fused, LayerPart, PartContext, Place
from plugserve.backends.torch.models.rope import Rope, make_rope
from plugserve.backends.torch.models.streamed_parts import (
    BeginningPart,
    Link,
    OffloadedWeights,
    part_bytes,
    spread,
    stream_parts,
)
from plugserve.backends.torch.parallel.shards import kv_part, rank_spec, shards
from plugserve.backends.torch.parallel.stages import stage_layers, stage_spec
from plugserve.core.contracts.attention import AttentionSpec
from plugserve.core.contracts.model import DecoderSpec, ModelStep, Parameter
from plugserve.core.contracts.runner import LengthRule
from plugserve.core.errors import ModelError
from plugserve.core.model_files.fill_parameters import fill_parameters

MakePart = Callable[[PartContext, int], LayerPart]


@dataclass(slots=True)
class DecoderLayer:
    """One layer. post_attention_norm and post_mlp_norm are those of spec.has_post_norms."""

    attention: LayerPart
    mlp: LayerPart
    input_norm: torch.Tensor
    mlp_norm: torch.Tensor
    post_attention_norm: torch.Tensor | None
    post_mlp_norm: torch.Tensor | None

    def places(self) -> dict[str, Place]:
        """By the checkpoint's name within the layer."""
        norms = {"input_layernorm": self.input_norm}
        if self.post_attention_norm is not None and self.post_mlp_norm is not None:
            norms["post_attention_layernorm"] = self.post_attention_norm
            norms["pre_feedforward_layernorm"] = self.mlp_norm
            norms["post_feedforward_layernorm"] = self.post_mlp_norm
        else:
            norms["post_attention_layernorm"] = self.mlp_norm
        named = {f"{name}.weight": Place(norm) for name, norm in norms.items()}
        return {**self.attention.places(), **self.mlp.places(), **named}


class Decoder:
    """One model; allocate gives it tensors on a device, load fills them. With num_host_bytes, which is set before, so
    much of its layers' weights is allocated in host memory instead, and stream_from_host follows load. A stage of a
    pipeline has some of the layers, which count from 0 here; the embedding if it is the first one, norm and head if it
    is the last."""

    dtype: torch.dtype
    device: torch.device
    embedding: torch.Tensor
    head: torch.Tensor
    norm: torch.Tensor
    layers: list[DecoderLayer]
    num_host_bytes = 0

    def __init__(
        self,
        spec: DecoderSpec,
        make_attention: MakePart = AttentionBlock,
        make_mlp: MakePart = DenseMlp,
        collectives: Collectives = SINGLE_RANK,
    ) -> None:
        self.whole_spec = spec
        self._pipeline = collectives.pipeline
        self.layer_numbers = stage_layers(spec, self._pipeline.num_stages)[self._pipeline.stage]
        self._is_first, self._is_last = self.layer_numbers.start == 0, self.layer_numbers.stop == spec.num_layers
        self.spec = stage_spec(rank_spec(spec, collectives.num_ranks), self.layer_numbers)
        self._make_attention = make_attention
        self._make_mlp = make_mlp
        self._collectives = collectives
        self.architecture = spec.architecture
        self.vocab_size = spec.vocab_size
        self.length_rule = _length_rule(spec)
        self.logits_soft_cap = spec.logits_soft_cap
        ranks, num_kv_heads = collectives, spec.num_kv_heads
        kv = (kv_part(num_kv_heads, ranks.rank, ranks.num_ranks), min(num_kv_heads, ranks.num_ranks))
        self.lora_sites = decoder_sites(self.spec, (ranks.rank, ranks.num_ranks), kv)
        self.weight_prefixes = spec.weight_prefixes

    def attention_spec(self, dtype: str, device: str) -> AttentionSpec:
        spec = self.spec
        return AttentionSpec(
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            scale=spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
            dtype=dtype,
            device=device,
            windows=spec.windows,
            soft_cap=spec.attention_soft_cap,
        )

    def allocate(self, *, dtype: torch.dtype, device: torch.device, max_positions: int) -> None:
        spec = self.spec
        self.dtype, self.device = dtype, device
        self._operations = _operations(spec, device)
        norm_dtype = torch.float32 if spec.norms_are_offset else dtype
        ranks = self._collectives
        part = kv_part(self.whole_spec.num_kv_heads, ranks.rank, ranks.num_ranks)
        context = PartContext(spec, dtype, norm_dtype, device, self._operations, ranks, part)
        # rounded to dtype, as transformers does
        scale = spec.embedding_scale
        self._embedding_scale = None if scale is None else torch.tensor(scale, dtype=dtype).item()
        self._ropes: list[Rope] = [
            make_rope(rope, spec.head_dim, num_positions=max_positions, dtype=dtype, device=device)
            for rope in spec.ropes
        ]
        num_tokens = -(-spec.vocab_size // ranks.num_ranks)
        self._first_token = ranks.rank * num_tokens
        self.embedding = context.empty(num_tokens if self._has_embedding else 0, spec.hidden_size)
        self.head = self.embedding
        if self._is_last and not spec.ties_embeddings:
            self.head = context.empty(num_tokens, spec.hidden_size)
        self.norm = context.empty_norm(spec.hidden_size)
        self._on_host: frozenset[int] = frozenset()
        if self.num_host_bytes:
            self._on_host = self._choose_for_host(context)
        self.layers = [self._make_layer(context, i) for i in range(spec.num_layers)]

    @property
    def _has_embedding(self) -> bool:
        return self._is_first or (self._is_last and self.spec.ties_embeddings)

    def _make_layer(self, context: PartContext, index: int) -> DecoderLayer:
        size, has_post_norms = context.spec.hidden_size, context.spec.has_post_norms
        host = replace(context, device=torch.device("cpu")) if self._on_host else context
        return DecoderLayer(
            attention=self._make_attention(host if 2 * index in self._on_host else context, index),
            mlp=self._make_mlp(host if 2 * index + 1 in self._on_host else context, index),
            input_norm=context.empty_norm(size),
            mlp_norm=context.empty_norm(size),
            post_attention_norm=context.empty_norm(size) if has_post_norms else None,
            post_mlp_norm=context.empty_norm(size) if has_post_norms else None,
        )

    # ---- weights

    def parameters(self) -> Mapping[str, Parameter]:
        return {
            name: Parameter(tuple(one.tensor.shape), one.shard_axis) for name, one in self._whole().places().items()
        }

    def _whole(self) -> Decoder:
        """The whole model, without memory: what a checkpoint brings."""
        described = Decoder(self.whole_spec, self._make_attention, self._make_mlp)
        described.allocate(dtype=torch.float32, device=torch.device("meta"), max_positions=1)
        return described

    def places(self) -> dict[str, Place]:
        """The place of each of a checkpoint's tensors, by Hugging Face's name."""
        places = {"model.embed_tokens.weight": Place(self.embedding, 0)} if self._has_embedding else {}
        if self._is_last:
            places["model.norm.weight"] = Place(self.norm)
            if not self.spec.ties_embeddings:
                places["lm_head.weight"] = Place(self.head, 0)
        for i, layer in zip(self.layer_numbers, self.layers, strict=True):
            places |= {f"model.layers.{i}.{name}": place for name, place in layer.places().items()}
        return places

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        places = self.places()
        tensors = {name: place.tensor for name, place in places.items()}
        whole = self._whole()
        shapes = {name: place.tensor for name, place in whole.places().items()}
        own = own_tensors(weights, self.whole_spec, shapes, whole._fused(), self._ropes)
        here = ((name, tensor) for name, tensor in own if name in places)
        fill_parameters(tensors, shards(here, places, self._collectives.rank), self.architecture)
        if self.spec.norms_are_offset:
            for name, tensor in tensors.items():
                if name.endswith("norm.weight"):
                    tensor.add_(1)

    def _fused(self) -> dict[str, Fused]:
        """Fused tensors by Hugging Face's name, their parts likewise."""
        fused = {}
        for i, layer in zip(self.layer_numbers, self.layers, strict=True):
            for part in (layer.attention, layer.mlp):
                for name, one in part.fused().items():
                    parts = {f"model.layers.{i}.{within}": tensor for within, tensor in one.parts.items()}
                    fused[f"model.layers.{i}.{name}"] = Fused(one.tensor, parts)
        return fused

    def weight_bytes(self) -> int:
        """Weights may be views of one tensor: of fused ones, or of the buffers of those that stay on the host."""
        storages = [place.tensor.untyped_storage() for place in self.places().values()]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    # ---- weights in host memory

    def _choose_for_host(self, context: PartContext) -> frozenset[int]:
        """Numbers of the parts whose weights stay there: attention of layer i is 2 i, its MLP 2 i + 1."""
        described = replace(context, device=torch.device("meta"))
        layers = [self._make_layer(described, i) for i in range(self.spec.num_layers)]
        return spread(
            [part_bytes(part) for layer in layers for part in (layer.attention, layer.mlp)], self.num_host_bytes
        )

    def stream_from_host(self, link: Link) -> OffloadedWeights:
        """After load: the weights in host memory move to link's, from where forward copies them."""
        chosen = sorted(self._on_host)
        parts = [self.layers[i // 2].mlp if i % 2 else self.layers[i // 2].attention for i in chosen]
        streamed, offloaded = stream_parts(parts, link)
        for i, part in zip(chosen, streamed, strict=True):
            if i % 2:
                self.layers[i // 2].mlp = part
            else:
                self.layers[i // 2].attention = part
        self.layers[0].attention = BeginningPart(self.layers[0].attention, offloaded.stream)
        return offloaded

    def activation_bytes(self, num_tokens: int, num_rows: int) -> int:
        spec = self.spec
        widest = max(3 * spec.intermediate_size, 2 * (spec.query_size + 2 * spec.kv_size)) + 4 * spec.hidden_size
        return num_tokens * widest * self.dtype.itemsize + num_rows * spec.vocab_size * 16

    # ---- forward

    def forward(self, token_ids: torch.Tensor, step: ModelStep) -> torch.Tensor:
        do = self._operations
        angles = [rope.angles(step.positions, step.lengths) for rope in self._ropes]
        x = self._first_hidden(token_ids)
        next_norms = [layer.input_norm for layer in self.layers[1:]] + [None]
        normed = do.norm(x, self.layers[0].input_norm)
        for layer, next_norm in zip(self.layers, next_norms, strict=True):
            added = layer.attention.forward(normed, angles, step)
            normed = do.add_norm(x, added, layer.post_attention_norm, layer.mlp_norm)
            added = layer.mlp.forward(normed, angles, step)
            normed = do.add_norm(x, added, layer.post_mlp_norm, next_norm)
        if not self._is_last:
            self._pipeline.send_hidden(x)
        return x

    def _first_hidden(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T, H] before the first layer here."""
        if not self._is_first:
            return self._pipeline.receive_hidden(len(token_ids), self.spec.hidden_size, self.dtype)
        x = self._embed(token_ids)
        if self._embedding_scale is not None:
            x *= self._embedding_scale
        return x

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self._collectives.num_ranks == 1:
            return self.embedding[token_ids]
        own = token_ids - self._first_token
        last = len(self.embedding) - 1
        is_here = (own >= 0) & (own <= last)
        return self._collectives.reduce(self.embedding[own.clamp(0, last)] * is_here[:, None])

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, self.norm, self.spec.norm_eps).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._operations.linear(self._operations.norm(hidden, self.norm), self.head)
        if self._collectives.num_ranks == 1:
            return logits
        return self._collectives.gather(logits)[:, : self.vocab_size].contiguous()


def _length_rule(spec: DecoderSpec) -> LengthRule | None:
    """Raises ModelError for layers that differ in where a sequence counts as long."""
    rules = {
        LengthRule(border, rope.kind == "longrope") for rope in spec.ropes if (border := rope.length_border) is not None
    }
    if len(rules) > 1:
        raise ModelError(f"{spec.architecture}: layers with different length-dependent RoPE are not supported")
    return rules.pop() if rules else None


def _operations(spec: DecoderSpec, device: torch.device) -> LayerOperations:
    """The fused kernels where Triton can run them, else plain torch."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from plugserve.backends.torch.kernels.fused_layers import FusedLayers

        return FusedLayers(spec)
    return PlainLayers(spec)
