"""The native backend's forward pass: loads a model, and computes steps in one call each."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugserve.backends.cpu.library import Step
from plugserve.backends.cpu.model_weights import ModelWeights
from plugserve.backends.cpu.native_model import NativeModel, Sizes
from plugserve.backends.cpu.packing import BFLOAT16, CODES4, CODES8
from plugserve.core.contracts.forward_pass import Computed, Floats, HostBatch, Ints
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.contracts.runner import LoadStage, RunnerInfo
from plugserve.core.errors import ConfigError
from plugserve.core.memory.machine import available_memory_bytes, usable_cores
from plugserve.core.model_files.length_warnings import decoder_length_warning

log = logging.getLogger(__name__)

_GIB = 1 << 30
_DEFAULT_TOKENS = 512  # of a step
_LEVELS = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2"}
_FORMATS = {BFLOAT16: "bfloat16", CODES8: "8 bits", CODES4: "4 bits"}


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """None means automatic. max_model_len may be "auto"; swap_space is in GiB."""

    threads: int | None
    max_model_len: int | str | None
    model_max_len: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int | None
    kv_cache_memory: int | None
    num_blocks: int | None
    swap_space: float | None = None
    level: int = -1


class NativeForward:
    """The ForwardPass of a DecoderSpec; read brings its weights."""

    has_hidden_states = True

    def __init__(
        self, library: ctypes.CDLL, spec: DecoderSpec, settings: NativeSettings, read: Callable[[], ModelWeights]
    ) -> None:
        self._library = library
        self._spec = spec
        self._settings = settings
        self._read = read
        self._model = NativeModel(library, spec)

    def load(self) -> RunnerInfo:
        began_s = time.monotonic()
        settings, model, asked = self._settings, self._model, self._asked_length()
        weights = self._read()
        formats = sorted({_FORMATS[matrix.format] for matrix in weights.matrices.values()})
        model.place(weights, asked)
        read_s = time.monotonic()
        block_bytes = model.bytes_per_block(settings.block_size)
        num_blocks = self._num_blocks(block_bytes, asked)
        max_len = self._fitting_length(asked, num_blocks * settings.block_size)
        num_threads = settings.threads or usable_cores()
        max_tokens = settings.max_num_batched_tokens or _DEFAULT_TOKENS
        model.start(
            Sizes(
                block_size=settings.block_size,
                num_blocks=num_blocks,
                max_tokens=max_tokens,
                max_rows=settings.max_num_seqs,
                max_len=max_len,
                num_threads=num_threads,
                level=settings.level,
            )
        )
        self._host_slots = self._make_host_slots(block_bytes)
        self._logits = np.empty((settings.max_num_seqs, self._spec.vocab_size), dtype=np.float32)
        log.info(
            "native CPU backend instructions=%s threads=%d weights=%r: results don't depend on the batch; "
            "--dtype float32 computes in float32 with torch",
            self._level_name(), num_threads, ", ".join(formats),
        )  # fmt: skip
        return RunnerInfo(
            vocab_size=self._spec.vocab_size,
            max_model_len=max_len,
            max_num_batched_tokens=max_tokens,
            num_blocks=num_blocks,
            block_size=settings.block_size,
            kv_cache_bytes=num_blocks * block_bytes,
            weight_bytes=model.num_bytes,
            dtype="bfloat16",
            device="cpu",
            num_host_slots=len(self._host_slots),
            load_stages=[
                LoadStage("read weights", began_s, read_s),
                LoadStage("warm up", read_s, time.monotonic()),
            ],
        )

    def compute(self, batch: HostBatch, wanted: Ints, needs_hidden: bool) -> Computed:
        if len(wanted) > len(self._logits):
            self._logits = np.empty((len(wanted), self._spec.vocab_size), dtype=np.float32)
        logits = self._logits[: len(wanted)]
        hidden = None
        if needs_hidden:
            hidden = np.empty((len(batch.token_ids), self._spec.hidden_size), dtype=np.float32)
        columns = (batch.token_ids, batch.positions, batch.slots, batch.query_starts, batch.context_lens)
        pointers = [column.ctypes.data for column in (*columns, batch.block_table, wanted, logits)]
        step = Step(
            len(batch.token_ids), len(batch.context_lens), len(wanted), batch.block_table.shape[1], *pointers,
            None if hidden is None else hidden.ctypes.data,
        )  # fmt: skip
        self._model.compute(step)
        return Computed(logits, hidden)

    def logits_of(self, hidden: Floats) -> Floats:
        logits: Floats = self._model.logits(hidden)
        return logits

    def copy_blocks(self, out: list[tuple[int, int]], back: list[tuple[int, int]]) -> None:
        kv, slots = self._model.kv, self._host_slots
        for block, slot in out:
            slots[slot] = kv[block]
        for slot, block in back:
            kv[block] = slots[slot]

    def close(self) -> None:
        self._model.close()

    # ---- sizes

    def _level_name(self) -> str:
        levels = self._library.ps_levels().decode().split()
        number = self._settings.level if self._settings.level >= 0 else len(levels)
        return _LEVELS[levels[len(levels) - number]] if number else "none (plain C++)"

    def _asked_length(self) -> int:
        asked = self._settings.max_model_len
        return asked if isinstance(asked, int) else self._settings.model_max_len

    def _fitting_length(self, asked: int, num_kv_tokens: int) -> int:
        """Raises ConfigError where a length that the user set does not fit."""
        if warning := decoder_length_warning(asked, self._settings.model_max_len):
            log.warning("%s", warning)
        if asked <= num_kv_tokens:
            return asked
        if isinstance(self._settings.max_model_len, int):
            raise ConfigError(
                f"one request of --max-model-len {asked} tokens does not fit into the KV cache of {num_kv_tokens} "
                f"tokens; use --max-model-len {num_kv_tokens} or a larger --kv-cache-memory"
            )
        log.warning("max-model-len lowered from=%d to=%d: the KV cache holds no more", asked, num_kv_tokens)
        return num_kv_tokens

    def _num_blocks(self, block_bytes: int, asked: int) -> int:
        """1 GiB or half of what is free by default, but room for one request of the length that the user set."""
        settings = self._settings
        if settings.num_blocks is not None:
            return settings.num_blocks
        size = settings.kv_cache_memory
        if size is None:
            free = available_memory_bytes()
            required = -(-asked // settings.block_size) * block_bytes if isinstance(settings.max_model_len, int) else 0
            size = max(min(_GIB, free // 2), min(required, free))
        if size < block_bytes:
            raise ConfigError(
                f"no room for KV blocks: {size / _GIB:.2f} GiB are available and one block takes "
                f"{block_bytes / _GIB:.3f} GiB; free memory or set --kv-cache-memory"
            )
        return size // block_bytes

    def _make_host_slots(self, block_bytes: int) -> Any:
        """Blocks in host memory (--swap-space); pages that are never written take no memory."""
        size = int((self._settings.swap_space or 0) * _GIB)
        return np.zeros((min(size, available_memory_bytes()) // block_bytes, block_bytes), dtype=np.uint8)
