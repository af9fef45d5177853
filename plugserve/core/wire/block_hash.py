"""Chained hashes of token blocks: a prefix cache's keys.

hash_i = xxh3_128(hash_{i-1} || tokens of block i as int32), with the salt as hash_{-1}. So a hash depends
on every token up to the end of its block. Used by the server and the engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from xxhash import xxh3_128_digest

HASH_BYTES: Final = 16


def salt_of(model: str, adapter: str = "", cache_salt: str = "") -> bytes:
    """The salt of a request's blocks. model and adapter name weights (an adapter that was loaded anew needs another
    name), "" is no adapter; requests with different cache_salts share no blocks."""
    return hash_salt(model, adapter, cache_salt)


def adapter_key(adapter_id: int) -> str:
    """The adapter's part of the salt. Ids are never used again, so neither are the blocks of one that is unloaded."""
    return str(adapter_id) if adapter_id else ""


def hash_salt(*parts: str) -> bytes:
    """The first link of a chain, from what must keep caches apart (model, adapter, a request's cache_salt).

    Each part's length goes in with it, so that ("ab", "c") and ("a", "bc") differ.
    """
    return xxh3_128_digest("".join(f"{len(part)}:{part}" for part in parts).encode())


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The next link: 16 bytes for one full block of tokens after parent."""
    return xxh3_128_digest(parent + array("i", token_ids).tobytes())


def split_hashes(raw: bytes) -> list[bytes]:
    """The hashes that lie in raw one after another, as messages carry them."""
    return [raw[start : start + HASH_BYTES] for start in range(0, len(raw), HASH_BYTES)]


def hash_blocks(salt: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Hashes of all full blocks of token_ids, in order; a partial block at the end has none."""
    return list(_chain(salt, token_ids, block_size))


def _chain(parent: bytes, token_ids: Sequence[int], block_size: int) -> Iterable[bytes]:
    raw = array("i", token_ids).tobytes()
    stride = block_size * 4
    for start in range(0, len(raw) - stride + 1, stride):
        parent = xxh3_128_digest(parent + raw[start : start + stride])
        yield parent
