"""A model without its tensors: the sizes that follow from its description, for the memory estimate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch

from plugserve.backends.torch.models.collectives import SINGLE_RANK, Collectives
from plugserve.backends.torch.models.decoder import Decoder
from plugserve.backends.torch.models.make_model import make_model
from plugserve.backends.torch.models.rope import rotary_size
from plugserve.backends.torch.models.streamed_parts import part_bytes, spread
from plugserve.backends.torch.runner.draft_loader import SHARED
from plugserve.backends.torch.runner.kv_tensors import checked_layout
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.core.contracts.attention import AttentionBackend
from plugserve.core.contracts.model import ModelDefinition
from plugserve.core.errors import one_line

log = logging.getLogger(__name__)

_LEAST_RANK = 16  # of a slot on a GPU, where buffers have ranks that are powers of two


class DescribedModel:
    """The model of a config before it is allocated, with the attention that serves it on device in dtype. Where ranks
    share the model, this rank's part of it."""

    def __init__(
        self,
        config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        sources: ModelSources,
        ranks: Collectives = SINGLE_RANK,
    ) -> None:
        self._ranks = ranks
        self.dtype = dtype
        self._config, self._architectures = config, sources.architectures
        self.model: ModelDefinition = make_model(config, sources.architectures, ranks)
        self.spec = self.model.attention_spec(str(dtype).removeprefix("torch."), str(device))
        self.attention: AttentionBackend = sources.choose_attention(self.spec)
        self.layout = checked_layout(self.attention, self.spec)

    @cached_property
    def _on_meta(self) -> ModelDefinition | None:
        """The model with tensors that have a shape and no memory; None for a plugin's code that can't be so."""
        model: ModelDefinition = make_model(self._config, self._architectures, self._ranks)
        try:
            model.allocate(dtype=self.dtype, device=torch.device("meta"), max_positions=1)
        except Exception as error:  # a plugin's
            log.info("memory of steps is not estimated: %s.allocate on meta: %s", model.architecture, one_line(error))
            return None
        return model

    @property
    def layer_numbers(self) -> range:
        """The model's layers that are here."""
        return self.model.layer_numbers if isinstance(self.model, Decoder) else range(self.spec.num_layers)

    @property
    def num_model_layers(self) -> int:
        return self.model.whole_spec.num_layers if isinstance(self.model, Decoder) else self.spec.num_layers

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [parameter.shape for parameter in self.model.parameters().values()]

    @property
    def largest_tensor(self) -> int:
        """The number of elements of the checkpoint's largest tensor."""
        return max(map(prod, self._shapes), default=0)

    @cached_property
    def weight_bytes(self) -> int:
        """All weights, wherever they lie."""
        if self._on_meta is not None:
            return self._on_meta.weight_bytes()
        return sum(map(prod, self._shapes)) * self.dtype.itemsize

    def offloaded_parts(self, wanted_bytes: int) -> list[int]:
        """The bytes of each part of a layer that stays on the host, if wanted_bytes are to."""
        model = self._on_meta
        if not isinstance(model, Decoder) or not wanted_bytes:
            return []
        parts = [part_bytes(part) for layer in model.layers for part in (layer.attention, layer.mlp)]
        return [parts[i] for i in sorted(spread(parts, wanted_bytes))]

    def activation_bytes(self, num_tokens: int) -> int:
        """A step's, without logits."""
        return 0 if self._on_meta is None else self._on_meta.activation_bytes(num_tokens, 0)

    def rope_bytes(self, num_positions: int) -> int:
        """Tables of cosines and sines."""
        if not isinstance(self.model, Decoder):
            return 0
        spec = self.model.spec
        width = sum(rotary_size(rope, spec.head_dim) for rope in spec.ropes if rope.kind != "dynamic")
        return 2 * num_positions * width * self.dtype.itemsize

    def lora_bytes(self, num_slots: int, max_rank: int) -> int:
        """Adapters of max_rank in all slots."""
        rank = max_rank
        if self.spec.device != "cpu":
            rank = max(_LEAST_RANK, 1 << (max_rank - 1).bit_length())
        sizes = [len(site.slices) * site.input_size + site.output_size for site in self.model.lora_sites]
        return self.spec.num_layers * num_slots * rank * sum(sizes) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class DraftSizes:
    """What a draft model adds; all 0 without one."""

    described: DescribedModel | None = None
    weight_bytes: int = 0
    bytes_per_block: int = 0


def draft_sizes(target: DescribedModel, sources: ModelSources, reference: str | None) -> DraftSizes:
    """The sizes of the draft model that reference names. Raises ModelError where it can't be found."""
    if reference is None or sources.make_proposer is None or sources.open_draft is None:
        return DraftSizes()
    config = sources.open_draft(reference).config
    draft = DescribedModel(config, target.dtype, torch.device(target.spec.device), sources)
    num_bytes = draft.weight_bytes
    if config.get(SHARED) == "target" and isinstance(draft.model, Decoder):
        spec = draft.model.spec
        num_bytes -= (1 if spec.ties_embeddings else 2) * spec.vocab_size * spec.hidden_size * target.dtype.itemsize
    return DraftSizes(draft, num_bytes, draft.layout.bytes_per_block)
