"""The settings that the native backend follows, and the sizes that come of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.length_warnings import decoder_length_warning

log = logging.getLogger(__name__)

GIB = 1 << 30
_DEFAULT_TOKENS = 512  # of a step


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

    @property
    def asked_length(self) -> int:
        """The longest sequence that is asked for: --max-model-len, or the model's own length."""
        return self.max_model_len if isinstance(self.max_model_len, int) else self.model_max_len

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.max_num_batched_tokens or _DEFAULT_TOKENS

    def num_blocks_of(self, block_bytes: int, free_bytes: int) -> int:
        """Blocks of the KV cache: 1 GiB or half of what is free by default, but room for one request of the length that
        the user set. Raises ConfigError where not one fits."""
        if self.num_blocks is not None:
            return self.num_blocks
        size = self.kv_cache_memory
        if size is None:
            required = block_bytes
            if isinstance(self.max_model_len, int):
                required = -(-self.max_model_len // self.block_size) * block_bytes
            size = max(min(GIB, free_bytes // 2), min(required, free_bytes))
        if size < block_bytes:
            raise ConfigError(
                f"no room for KV blocks: {size / GIB:.2f} GiB are available and one block takes "
                f"{block_bytes / GIB:.3f} GiB; free memory or set --kv-cache-memory"
            )
        return size // block_bytes

    def fitting_length(self, num_kv_tokens: int) -> int:
        """The longest sequence that is served. Raises ConfigError where a length that the user set does not fit."""
        asked = self.asked_length
        if warning := decoder_length_warning(asked, self.model_max_len):
            log.warning("%s", warning)
        if asked <= num_kv_tokens:
            return asked
        if isinstance(self.max_model_len, int):
            raise ConfigError(
                f"one request of --max-model-len {asked} tokens does not fit into the KV cache of {num_kv_tokens} "
                f"tokens; use --max-model-len {num_kv_tokens} or a larger --kv-cache-memory"
            )
        log.warning("max-model-len lowered from=%d to=%d: the KV cache holds no more", asked, num_kv_tokens)
        return num_kv_tokens
