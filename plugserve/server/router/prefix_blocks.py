"""The beginning of a request's prompt as a chain of block hashes, which requests with the same beginning share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import xxhash

BLOCK_BYTES: Final = 256  # about 64 tokens of English
MAX_BLOCKS: Final = 256
_MAX_BYTES: Final = BLOCK_BYTES * MAX_BLOCKS
_MAX_PARTS: Final = 4096
_MAX_VALUES: Final = 16_384  # that are looked at for them
_GENERATING: Final = ("/completions", "/responses", "/messages", "/invocations")
_FIELDS: Final = ("tools", "system", "instructions", "messages", "input", "prompt")  # in the order of a prompt
_SEED: Final = secrets.randbits(64)  # clients can't make different beginnings collide


def prefix_blocks(path: str, model: str, body: Mapping[str, Any] | None) -> list[int]:
    """Hashes of the full blocks of the prompt's beginning, each of everything before it too; [] for requests that
    generate nothing. The text is the fields' strings, not what the model's template makes of them."""
    if body is None or not path.rstrip("/").endswith(_GENERATING):
        return []
    text = _beginning(body)
    salt = body.get("cache_salt")
    chained = xxhash.xxh3_64_intdigest(f"{model}\0{salt}".encode(errors="surrogatepass"), _SEED)
    blocks: list[int] = []
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        chained = xxhash.xxh3_64_intdigest(text[start : start + BLOCK_BYTES], chained)
        blocks.append(chained)
    return blocks


def _beginning(body: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    for name in _FIELDS:
        for text in _strings(body.get(name)):
            encoded = text[:_MAX_BYTES].encode(errors="surrogatepass")
            parts += (encoded, b"\0")
            num_bytes += len(encoded) + 1
            if num_bytes >= _MAX_BYTES or len(parts) >= 2 * _MAX_PARTS:
                return b"".join(parts)[:_MAX_BYTES]
    return b"".join(parts)


def _strings(value: Any) -> Iterator[str]:
    """The strings and numbers among the first values of a JSON value, in order, without recursion: clients choose the
    depth."""
    waiting = [value]
    for _ in range(_MAX_VALUES):
        if not waiting:
            return
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting.extend(reversed(list(islice(one.values(), _MAX_VALUES))))
        elif isinstance(one, list):
            waiting.extend(reversed(one[:_MAX_VALUES]))
        elif one is not None:
            yield str(one)
