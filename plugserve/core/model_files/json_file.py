"""A model's JSON files, read with a one-line error for whatever is malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plugserve.core.errors import ModelError


def read_json_object(path: Path, *, is_required: bool) -> dict[str, Any]:
    """The JSON object in path; {} for a missing file that isn't required."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_required:
            raise ModelError(f"{path} is missing") from None
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value
