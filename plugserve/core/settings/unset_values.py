"""Values that leave a setting at its default: null in a file, and the empty values that templates write in its place.

A key without a value is null in YAML; Helm and other templates write null, "", {} or [] for an unset value.
TOML has no null.
"""

from __future__ import annotations

from typing import Any

from plugserve.core.settings.setting_names import Name

_EMPTY: tuple[Any, ...] = ("", {}, [])


def is_unset(value: Any, name: Name) -> bool:
    """True for a value in a file that means the default of name's setting.

    An empty text is a value where the setting or option may be one: a secret (an empty key is an error, never a server
    without keys) and a plugin's option of type text. An empty list or table is one where a list or table is expected.
    """
    if value is None:
        return True
    if not any(value == empty and type(value) is type(empty) for empty in _EMPTY):
        return False
    return not name.takes_empty(value)


def without_nulls(value: Any) -> Any:
    """A list without its null entries; null for one that had only those. Other values are returned unchanged."""
    if not isinstance(value, list):
        return value
    kept = [entry for entry in value if entry is not None]
    return kept if kept or not value else None


def is_none_word(value: Any, name: Name) -> bool:
    """True for None, null and an empty text on the command line, for a setting whose default is none: scripts pass
    --tokenizer "$TOKENIZER"."""
    return name.is_none_by_default and isinstance(value, str) and value.strip() in ("", "None", "null")
