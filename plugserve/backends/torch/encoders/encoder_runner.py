"""The torch EncoderRunner: pads a batch, runs transformers' model, pools."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from plugserve.backends.torch.encoders.encoder_memory import encoder_ledger
from plugserve.backends.torch.encoders.encoder_model import encoder_shapes, load_encoder
from plugserve.backends.torch.encoders.pooling import ACTIVATE, POOLS, Dense
from plugserve.backends.torch.runner.devices import DeviceKind, choose_device
from plugserve.backends.torch.runner.load_choices import choose_dtype
from plugserve.core.contracts.encoding import MODELS_OWN, EncoderInput
from plugserve.core.contracts.memory import MemoryLedger, MemoryUse
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.memory.machine import usable_cores
from plugserve.core.memory.process_use import process_use
from plugserve.core.model_files.encoder_files import SCORE, EncoderFacts
from plugserve.core.model_files.length_warnings import encoder_length_warning

log = logging.getLogger(__name__)

_LEAST_BATCH_TOKENS: Final = 512

Weights = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """The settings that the runner reads; None is automatic."""

    dtype: str
    device: str
    num_threads: int | None
    max_model_len: int | str | None
    max_num_batched_tokens: int | None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)


class TorchEncoderRunner:
    """EncoderRunner for the encoder in folder. open_dense reads the weights of a dense layer's folder."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        facts: EncoderFacts,
        settings: EncoderSettings,
        open_weights: Callable[[], Weights],
        open_dense: Callable[[str], Weights],
    ) -> None:
        self._folder = folder
        self._config = config
        self._facts = facts
        self._settings = settings
        self._open_weights = open_weights
        self._open_dense = open_dense
        self._model: Any = None
        self._dense: list[Dense] = []

    @cached_property
    def _kind(self) -> DeviceKind:
        return choose_device(self._settings.device)

    @property
    def _dtype(self) -> torch.dtype:
        return choose_dtype(self._settings.dtype, self._config, self._kind.default_dtype)

    @property
    def _num_batched_tokens(self) -> int:
        return self._settings.max_num_batched_tokens or max(_LEAST_BATCH_TOKENS, self._kind.default_num_batched_tokens)

    def estimate_memory(self) -> MemoryLedger:
        """See MemoryEstimator."""
        shapes = encoder_shapes(self._folder, self._facts.task, self._settings.config_overrides)
        return encoder_ledger(
            self._config, shapes.values(), self._dtype, self._kind, self._num_batched_tokens, self._max_length()
        )

    def measure_memory(self) -> MemoryUse:
        """See MemoryEstimator."""
        return self._kind.memory.measured(process_use())

    def load(self) -> RunnerInfo:
        settings = self._settings
        torch.set_num_threads(settings.num_threads or min(torch.get_num_threads(), usable_cores()))
        self._device, dtype = self._kind.device, self._dtype
        self._model = load_encoder(
            self._folder, self._facts.task, settings.config_overrides, self._open_weights(), dtype, self._device
        )
        self._dense = [
            Dense.of(files, dict(self._open_dense(files.folder)), self._device) for files in self._facts.dense
        ]
        self._padding = int(getattr(self._model.config, "pad_token_id", None) or 0)
        takes = inspect.signature(self._model.forward).parameters
        self._tells_pairs = "token_type_ids" in takes and getattr(self._model.config, "type_vocab_size", 0) > 1
        return RunnerInfo(
            task=self._facts.task,
            vocab_size=int(self._model.get_input_embeddings().weight.shape[0]),
            max_model_len=self._max_length(),
            max_num_batched_tokens=self._num_batched_tokens,
            num_blocks=0,
            block_size=16,
            kv_cache_bytes=0,
            weight_bytes=sum(one.numel() * one.element_size() for one in self._model.parameters()),
            dtype=str(dtype).removeprefix("torch."),
            device=str(self._device),
        )

    def _max_length(self) -> int:
        """The makers' length, unless --max-model-len gives one that the weights take."""
        asked, facts = self._settings.max_model_len, self._facts
        if not isinstance(asked, int):
            return facts.max_length
        if warning := encoder_length_warning(asked, facts):
            log.warning("%s", warning)
        return asked if asked <= facts.max_positions else facts.max_length

    @torch.inference_mode()
    def encode(self, batch: Sequence[EncoderInput]) -> list[bytes]:
        longest = max(len(one.token_ids) for one in batch)
        ids = torch.full((len(batch), longest), self._padding)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        kinds = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, one in enumerate(batch):
            length = len(one.token_ids)
            ids[row, :length] = torch.tensor(one.token_ids)
            mask[row, :length] = 1
            if one.second_start:
                kinds[row, one.second_start : length] = 1
        inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        if self._tells_pairs:
            inputs["token_type_ids"] = kinds.to(self._device)
        output = self._model(**inputs)
        if self._facts.task == SCORE:
            return _rows(ACTIVATE[self._facts.activation](output.logits.float()))
        return self._pooled(output.last_hidden_state.float(), inputs["attention_mask"].float(), batch)

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor, batch: Sequence[EncoderInput]) -> list[bytes]:
        """Each kind of pooling that the batch asks for is computed once, for all of it."""
        computed = {name: _rows(self._pool(name, hidden, mask)) for name in {one.pooling for one in batch}}
        return [computed[one.pooling][row] for row, one in enumerate(batch)]

    def _pool(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        names = self._facts.poolings if name == MODELS_OWN else (name,)
        vectors = torch.cat([POOLS[one](hidden, mask) for one in names], -1)
        if name == MODELS_OWN:
            for layer in self._dense:
                vectors = layer(vectors)
        return vectors

    def close(self) -> None:
        self._model = None
        self._dense = []


def _rows(vectors: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in vectors.cpu().numpy()]
