"""Settings of a server with several models: which there are, when each is loaded, and what memory they may take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from plugserve.core.settings.setting_groups import MANY_MODELS
from plugserve.core.settings.setting_types import (
    SIZE_ACCEPTS,
    DeclaredSettings,
    Number,
    OptionalSize,
    Positive,
    Texts,
    setting,
)

_TABLE_ACCEPTS: Final = "a table of models by name, such as {small: {model: FOLDER, ttl: 300}}"


def _model_table(value: Any) -> Any:
    """A table of tables; NAME: MODEL is short for NAME: {model: MODEL}. Keys may have hyphens, null is no value."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping | None):
        raise ValueError("not a table")
    return {_name(name): _model_body(body) for name, body in (value or {}).items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 256 or not name.isprintable():
        raise ValueError("a model's name must be a printable text of at most 256 characters")
    return name.strip()


def _model_body(body: Any) -> dict[str, Any]:
    if isinstance(body, str):
        body = {"model": body}
    if not isinstance(body, Mapping | None):
        raise ValueError("not a table of a model's settings")
    return {str(key).replace("-", "_"): value for key, value in (body or {}).items() if value is not None}


ModelTable = Annotated[dict[str, dict[str, Any]], BeforeValidator(_model_table)]


class ManyModelsSettings(DeclaredSettings):
    """Several models in one server."""

    models: ModelTable = setting(
        {},
        MANY_MODELS,
        "Models that load on the first request that names them, by name, each with its own settings (see "
        "many-models.md); on the command line as JSON.",
        _TABLE_ACCEPTS,
        metavar="JSON",
        shown_default="none",
    )
    model_dir: Texts = setting(
        [],
        MANY_MODELS,
        "Folder whose checkpoint folders and .gguf files are models that load on the first request; repeat it.",
        "a folder",
        metavar="FOLDER",
    )
    model_memory_budget: OptionalSize = setting(
        None,
        MANY_MODELS,
        "Memory that the loaded models may take together; the least recently used one makes room for another.",
        SIZE_ACCEPTS,
        metavar="SIZE",
        shown_default="the memory that is free at the start",
    )
    model_ttl: Number = setting(
        0.0,
        MANY_MODELS,
        "Seconds without a request after which a model is unloaded; 0 never unloads one for that.",
        "a number of at least 0",
        metavar="S",
    )
    model_load_timeout: Positive = setting(
        300.0,
        MANY_MODELS,
        "Seconds that a request waits for its model to load; then it ends with 503.",
        "a number above 0",
        metavar="S",
    )
    allow_model_download: bool = setting(
        False,
        MANY_MODELS,
        "Let requests name any Hugging Face id: the server downloads and serves it.",
        "true or false",
    )
