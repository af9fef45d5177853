"""Files of --load-format sharded_state (vLLM's layout): model-rank-R-part-P.safetensors. Headers only, torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from plugserve.core.errors import ModelError
from plugserve.core.model_files.checkpoint_folder import open_safetensors

SHARDED_PATTERN: Final = "model-rank-*-part-*.safetensors"
_NAME: Final = re.compile(r"model-rank-(\d{1,4})-part-(\d{1,6})\.safetensors")
NUM_RANKS: Final = "num_ranks"
NUM_PARTS: Final = "num_parts"
"""Keys of a file's metadata that save-sharded writes: how many ranks there are, how many parts this rank has."""


def sharded_name(rank: int, part: int) -> str:
    """The name of a rank's file."""
    return f"model-rank-{rank}-part-{part}.safetensors"


def is_sharded_file(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None


def check_sharded(folder: Path) -> list[list[Path]]:
    """The files of each rank, in order. Raises ModelError for a file that is missing or torn."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob(SHARDED_PATTERN):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if not found:
        raise ModelError(f"{folder} holds no {SHARDED_PATTERN} files")
    ranks = []
    num_ranks = max(found) + 1
    for rank in range(num_ranks):
        _refuse_gap(folder, rank, found.get(rank, {}), 1)
    for rank in range(num_ranks):
        num_parts = max(found[rank]) + 1
        for part, path in sorted(found[rank].items()):
            metadata = _metadata(path)
            num_parts = max(num_parts, _count(metadata, NUM_PARTS) if part == 0 else 0)
            for other in range(num_ranks, _count(metadata, NUM_RANKS)):
                _refuse_gap(folder, other, {}, 1)
        _refuse_gap(folder, rank, found[rank], num_parts)
        ranks.append([found[rank][part] for part in range(num_parts)])
    return ranks


def _refuse_gap(folder: Path, rank: int, parts: Iterable[int], least: int) -> None:
    """Raise ModelError for a rank without one of its parts, of which there are at least least."""
    known = set(parts)
    for part in range(max([least, *(one + 1 for one in known)])):
        if part not in known:
            raise ModelError(
                f"{folder / sharded_name(rank, part)} is missing: the folder's other files of sharded_state need it"
            )


def _metadata(path: Path) -> dict[str, Any]:
    with open_safetensors(path) as file:
        return file.metadata() or {}


def _count(metadata: dict[str, Any], key: str) -> int:
    value = str(metadata.get(key, ""))
    return int(value) if value.isdecimal() and len(value) < 7 else 0
