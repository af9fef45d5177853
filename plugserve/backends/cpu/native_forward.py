"""The native backend's forward pass: loads a model, and computes steps in one call each."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from plugserve.backends.cpu.library import Step
from plugserve.backends.cpu.model_weights import ModelWeights
from plugserve.backends.cpu.native_model import NativeModel, Sizes
from plugserve.backends.cpu.native_settings import GIB, NativeSettings
from plugserve.backends.cpu.packing import BFLOAT16, CODES4, CODES8
from plugserve.core.contracts.forward_pass import Computed, Floats, HostBatch, Ints
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.contracts.runner import LoadStage, RunnerInfo
from plugserve.core.memory.machine import available_memory_bytes, usable_cores

log = logging.getLogger(__name__)

_LEVELS = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2"}
_FORMATS = {BFLOAT16: "bfloat16", CODES8: "8 bits", CODES4: "4 bits"}


class NativeForward:
    """The ForwardPass of a DecoderSpec; read brings its weights."""

    has_hidden_states = True

    def __init__(
        self, library: ctypes.CDLL, spec: DecoderSpec, settings: NativeSettings, read: Callable[[], ModelWeights]
    ) -> None:
        self.spec = self._spec = spec
        self.settings = self._settings = settings
        self._library = library
        self._read = read
        self._model = NativeModel(library, spec)

    def load(self) -> RunnerInfo:
        began_s = time.monotonic()
        settings, model, asked = self._settings, self._model, self._settings.asked_length
        weights = self._read()
        formats = sorted({_FORMATS[matrix.format] for matrix in weights.matrices.values()})
        model.place(weights, asked)
        read_s = time.monotonic()
        block_bytes = self.bytes_per_block()
        num_blocks = settings.num_blocks_of(block_bytes, available_memory_bytes())
        max_len = settings.fitting_length(num_blocks * settings.block_size)
        num_threads = settings.threads or usable_cores()
        max_tokens = settings.step_tokens
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

    def bytes_per_block(self) -> int:
        """Of the KV cache."""
        return self._model.bytes_per_block(self._settings.block_size)

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

    def _make_host_slots(self, block_bytes: int) -> Any:
        """Blocks in host memory (--swap-space); pages that are never written take no memory."""
        size = int((self._settings.swap_space or 0) * GIB)
        return np.zeros((min(size, available_memory_bytes()) // block_bytes, block_bytes), dtype=np.uint8)
