"""Reads a model's JSON files; a malformed file is a one-line error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from plugserve.core.contracts.regular_files import read_regular_file
from plugserve.core.errors import ModelError

_MOST_BYTES: Final = 256 << 20  # vocab.json and indexes of thousands of shards are far smaller
_LONGEST_SHOWN: Final = 60


def read_json_object(path: Path, *, is_required: bool) -> dict[str, Any]:
    """The JSON object in path; {} for a missing file that isn't required."""
    try:
        value = json.loads(read_regular_file(path, _MOST_BYTES).decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # "\ud800" is no text, and can't be passed on as such
    except FileNotFoundError:
        if is_required:
            raise ModelError(f"{path} is missing") from None
        return {}
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise ModelError(f"{path} can't be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ModelError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value


def shown(value: Any) -> str:
    """A value for an error message, cut to one short line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
