"""Loads the draft model: beside the served one, on its device and in its dtype, maybe with its embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch

from plugserve.backends.torch.models.decoder import Decoder
from plugserve.backends.torch.models.make_model import make_model
from plugserve.backends.torch.runner.devices import DeviceKind
from plugserve.backends.torch.runner.draft_runner import TorchDraftRunner
from plugserve.backends.torch.runner.kv_tensors import checked_layout, kv_tensors
from plugserve.backends.torch.runner.load_choices import RunnerSettings, asked_length
from plugserve.backends.torch.runner.model_sources import DraftFiles, ModelSources
from plugserve.backends.torch.runner.step_runner import StepRunner
from plugserve.core.contracts.attention import AttentionSpec
from plugserve.core.contracts.model import ModelDefinition
from plugserve.core.errors import ConfigError, ModelError, PluginError

SHARED = "share_embeddings"
"""A draft whose embeddings and head are the served model's has `share_embeddings: target` in its config."""
TOKEN_IDS = "draft_token_ids"
"""A tensor of such a draft: the ids of the tokens that it may propose, in order. Its head consists of the served
model's rows of these tokens only, because with few layers the head takes most of the time."""


class DraftLoader:
    """Builds the one draft model that a proposer asks for. target is the served model, with attention as in spec."""

    def __init__(
        self,
        sources: ModelSources,
        settings: RunnerSettings,
        kind: DeviceKind,
        target: ModelDefinition,
        spec: AttentionSpec,
    ) -> None:
        self._sources = sources
        self._settings = settings
        self._kind = kind
        self._target = target
        self._target_spec = spec
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self.reserved_bytes_per_token = 0
        self.weight_bytes = 0
        self.runner: TorchDraftRunner | None = None

    def reserve_kv(self, bytes_per_token: int) -> None:
        """See DraftProposerContext."""
        self.reserved_bytes_per_token += bytes_per_token

    def build(self, reference: str) -> TorchDraftRunner:
        """See DraftProposerContext.build_runner."""
        if self._sources.open_draft is None or self.runner is not None:
            raise PluginError("a proposer can build one draft model, and only if the runner's loader can find it")
        files = self._sources.open_draft(reference)
        model = make_model(files.config, self._sources.architectures)
        spec = model.attention_spec(self._target_spec.dtype, self._target_spec.device)
        attention = self._sources.choose_attention(spec)
        self._layout, self._num_layers = checked_layout(attention, spec), spec.num_layers
        model.allocate(dtype=self._dtype, device=self._kind.device, max_positions=asked_length(self._settings))
        token_ids = None
        if files.config.get(SHARED) == "target":
            token_ids = self._load_shared(model, files)
        else:
            model.load(files.open_weights())
            self.weight_bytes = model.weight_bytes()
        self.runner = TorchDraftRunner(
            model, attention, self._layout, self._target.vocab_size, self._settings.block_size, token_ids
        )
        return self.runner

    def attach(self, steps: StepRunner, num_blocks: int, max_num_tokens: int, max_num_seqs: int) -> None:
        """Attach the draft model, if there is one, to the served model's rows, with as many blocks."""
        if self.runner is not None:
            kv = kv_tensors(self._layout, num_blocks, self._num_layers, self._dtype, self._kind)
            self.runner.attach(steps.state, steps.sampler, kv, max_num_tokens, max_num_seqs)

    # ---- shared embeddings

    def _load_shared(self, model: ModelDefinition, files: DraftFiles) -> torch.Tensor | None:
        """Layers of its own between the served model's embeddings and head; the ids of draft_token_ids."""
        target = self._target
        if not isinstance(model, Decoder) or not isinstance(target, Decoder):
            raise ConfigError(f"{SHARED} works between models that are described as data (DecoderSpec) alone")
        token_ids: list[torch.Tensor] = []

        def others() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in files.open_weights():
                if name == TOKEN_IDS:
                    token_ids.append(tensor)
                else:
                    yield name, tensor

        model.load(chain(_shared_weights(model, target), others()))
        own_bytes = model.weight_bytes()
        own_bytes -= sum(_bytes_of(tensor) for tensor in {model.embedding, model.head})
        model.embedding, model.head = target.embedding, target.head
        ids = None
        if token_ids:
            ids = _checked_ids(token_ids[0], len(target.head)).to(target.device)
            model.head = target.head[ids]
            own_bytes += _bytes_of(model.head)
        self.weight_bytes = own_bytes
        return ids


def _shared_weights(model: Decoder, target: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
    spec = model.spec
    if (spec.vocab_size, spec.hidden_size) != target.embedding.shape:
        raise ConfigError(
            f"the draft model shares the served model's embeddings but has {spec.vocab_size} x {spec.hidden_size}, "
            f"not {' x '.join(map(str, target.embedding.shape))}"
        )
    yield "model.embed_tokens.weight", target.embedding
    if not spec.ties_embeddings:
        yield "lm_head.weight", target.head


def _checked_ids(token_ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    ids = token_ids.long()
    if ids.ndim != 1 or not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ModelError(f"the draft model's {TOKEN_IDS} are not ids of the served model's {vocab_size}")
    return ids


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
