"""Lays --hf-overrides over a model's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.config_values import check_config
from plugserve.core.model_files.json_file import shown

FLAG: Final = "--hf-overrides"
_KINDS: Final = ((bool, "true or false"), ((int, float), "a number"), (str, "a text"), (dict, "an object"))


def overridden(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """config with the values of overrides. A config within it (text_config, ...) is changed key by key, any other
    object, such as rope_scaling, is replaced. Raises ConfigError for a value of another type than config's own."""
    changed = dict(config)
    for name, value in overrides.items():
        own = config.get(name)
        _check_kind(name, own, value)
        is_config = name.endswith("_config") and isinstance(own, dict) and isinstance(value, dict)
        changed[name] = overridden(own, value) if is_config else value  # type: ignore[arg-type]
    return changed


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value that is invalid for its key, whatever the model's config has."""
    nested = overrides.get("text_config")
    try:
        check_config(FLAG, overrides)
        if isinstance(nested, dict):
            check_config(f"{FLAG}: text_config", nested)
    except ModelError as error:
        raise ConfigError(str(error)) from None


def _check_kind(name: str, own: Any, value: Any) -> None:
    if own is None or value is None or isinstance(own, list) or isinstance(value, list):
        return  # eos_token_id and others are one value or a list
    wanted = _kind(own)
    if _kind(value) != wanted:
        raise ConfigError(f"{FLAG}: {name} should be {wanted}, as the model's config has it, got {shown(value)}")


def _kind(value: Any) -> str:
    return next((kind for types, kind in _KINDS if isinstance(value, types)), type(value).__name__)
