"""Hashes of a prompt's blocks for the engine's prefix cache, made in the server to spare the engine's one thread.

EngineInfo gives the model's salt and the block size; the salt is empty for an engine without a prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.wire.block_hash import hash_blocks, salt_of
from plugserve.server.pipeline.prompts import Prompt

_TOKENS_ON_THE_LOOP: Final = 2048  # hashing these takes 0.05 ms, about as long as handing them to a thread


async def hash_prompts(
    prompts: list[Prompt], info: EngineInfo, cache_salt: str, pool: Executor, *, adapter: str = ""
) -> list[Prompt]:
    """prompts with their block hashes; long ones are hashed in a thread, off the event loop. For an engine with a
    prefix cache only."""
    salt, block_size = salt_of(info.prefix_salt, adapter, cache_salt), info.block_size
    if sum(len(prompt.token_ids) for prompt in prompts) <= _TOKENS_ON_THE_LOOP:
        return _hashed(prompts, salt, block_size)
    return await asyncio.get_running_loop().run_in_executor(pool, _hashed, prompts, salt, block_size)


def _hashed(prompts: Sequence[Prompt], salt: bytes, block_size: int) -> list[Prompt]:
    return [
        replace(prompt, block_hashes=b"".join(hash_blocks(salt, prompt.token_ids, block_size))) for prompt in prompts
    ]
