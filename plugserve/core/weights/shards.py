"""Which files hold a checkpoint: one file, or shards with an index. Knows nothing of what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugserve.core.errors import ModelError


def read_index(index: Path) -> dict[Path, set[str]]:
    """Shard: the tensors that the index puts there. Raises ModelError for a broken index or a missing shard.

    Only files beside the index count, whatever it says.
    """
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(name), Path(shard).name) for name, shard in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index with a weight_map: {error!r}") from None
    shards: dict[Path, set[str]] = {}
    for name, shard in sorted(entries, key=lambda entry: entry[1]):
        shards.setdefault(index.parent / shard, set()).add(name)
    if not shards:
        raise ModelError(f"{index} lists no tensors")
    for path in shards:
        if not path.is_file():
            raise ModelError(f"{path} is missing: {index.name} names it as one of {len(shards)} shards")
    return shards


def refuse_missing(path: Path, missing: set[str]) -> None:
    """Raise ModelError when a shard lacks tensors that the index puts there."""
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors that the index puts there, the first is {min(missing)!r}"
        )
