"""The values of requests that name none: those of --override-generation-config over those of --generation-config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from plugserve.core.errors import ConfigError, ModelError, did_you_mean
from plugserve.core.model_files.config_values import check_generation_config
from plugserve.core.model_files.json_file import read_json_object
from plugserve.core.model_files.model_source import SAMPLING_KEYS, ModelSource, sampling_defaults

_FILE: Final = "generation_config.json"
_LENGTH: Final = "max_new_tokens"
_FLAG: Final = "--generation-config"
_OVERRIDE: Final = "--override-generation-config"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """sampling: by the names of requests' fields. max_new_tokens limits every answer; None is no limit."""

    sampling: Mapping[str, Any]
    max_new_tokens: int | None = None


def generation_defaults(source: ModelSource, choice: str, overrides: Mapping[str, Any]) -> GenerationDefaults:
    """choice: "auto" is the model's own file, "none" no file, else a folder. Raises ConfigError or ModelError."""
    _check_overrides(overrides)
    found = {**_chosen(source, choice), **{name: value for name, value in overrides.items() if name != _LENGTH}}
    return GenerationDefaults(
        {name: value for name, value in found.items() if value is not None}, overrides.get(_LENGTH)
    )


def _chosen(source: ModelSource, choice: str) -> Mapping[str, Any]:
    if choice == "auto":
        return sampling_defaults(source)
    return {} if choice == "none" else _of_folder(choice)


def _of_folder(choice: str) -> dict[str, Any]:
    path = Path(os.path.expanduser(choice))
    file = path if path.name == _FILE else path / _FILE
    if not file.is_file():
        raise ConfigError(
            f"{_FLAG} must be auto, none (vllm) or a folder with {_FILE}, got {choice!r} (no file {file.absolute()})"
        )
    config = read_json_object(file, is_required=True)
    check_generation_config(file, config)
    return {name: config[name] for name in SAMPLING_KEYS if config.get(name) is not None}


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    known = (*SAMPLING_KEYS, _LENGTH)
    for name in overrides:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{_OVERRIDE} can't set {name!r}.{hint} It takes {', '.join(known)}")
    try:
        check_generation_config(_OVERRIDE, overrides)
    except ModelError as error:
        raise ConfigError(str(error)) from None
