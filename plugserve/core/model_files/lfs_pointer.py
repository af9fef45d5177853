"""Recognises files of a git checkout that git-lfs hasn't fetched: a few lines of text in place of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from plugserve.core.errors import ModelError

_BEGIN: Final = b"version https://git-lfs.github.com/spec/"
_MOST_BYTES: Final = 1024  # a pointer may have no more


def refuse_pointer(path: Path) -> None:
    """Raise ModelError for a file that is only a pointer."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return
        with path.open("rb") as file:
            begin = file.read(len(_BEGIN))
    except OSError:  # whoever reads the file says why it can't be read
        return
    if begin == _BEGIN:
        raise ModelError(
            f"{path} is only a pointer of git-lfs, not the file itself: run `git lfs pull` there, or download it"
        )
