"""The entries of the model table: each served model by name, with the settings that are its own.

An entry comes from --model, from the table `models:` of the config file, from --model-dir, or from a request that names
a Hugging Face id (--allow-model-download).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from annotated_types import Ge, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from plugserve.core.errors import ConfigError
from plugserve.core.settings.setting_groups import FEATURES, MODEL, PARALLEL, PERFORMANCE, PLUGINS
from plugserve.core.settings.setting_names import KnownNames
from plugserve.core.settings.settings import Settings, default_of, setting_facts

_GROUPS: Final = (MODEL, PARALLEL, PERFORMANCE, FEATURES, PLUGINS)
_OF_THE_SERVER: Final = frozenset(
    {"model", "served_model_name", "enable_lora", "lora_modules", "lora_dir", "max_cpu_loras", "plugin", "no_plugin"}
)
"""Settings of those groups that belong to the whole server."""


class _OwnFields(BaseModel):
    """The keys of an entry that are no settings; every other key is a setting of the model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: Annotated[str, MinLen(1)] | None = None
    aliases: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = []
    pinned: bool | None = None
    preload: bool | None = None
    ttl: Annotated[float, Ge(0)] | None = None


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the table.

    name is its key everywhere inside the server. names are listed by /v1/models, aliases may be used too. reference is
    what --model would take, None for the embedded model. A pinned model is never unloaded to make room, a preloaded one
    loads at the start. ttl_s None is --model-ttl. overrides are the settings that differ from the server's.
    """

    name: str
    reference: str | None
    names: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    is_pinned: bool = False
    is_preloaded: bool = False
    ttl_s: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def settings_of(settings: Settings, entry: ModelEntry) -> Settings:
    """The server's settings with the model's own in place. Raises ValidationError for values of the wrong kind."""
    values = settings.model_dump() | dict(entry.overrides)
    values |= {"model": [entry.reference] if entry.reference is not None else [], "models": {}, "model_dir": []}
    return Settings(**values)


def own_fields(settings: Settings, name: str) -> tuple[_OwnFields, dict[str, Any]]:
    """The entry of the table `models:` called name, and its settings. Empty for a name without an entry."""
    fields = _OwnFields.model_validate(settings.models.get(name, {}))
    names = KnownNames(is_strict=False)
    known = {key: names.find(key, key, "") for key in fields.model_extra or {}}
    return fields, {found.setting: (fields.model_extra or {})[key] for key, found in known.items() if found is not None}


def check_model_table(settings: Settings, place: str) -> None:
    """Raise ConfigError, in one line, for a key or value of the table `models:` that can't be used. place is how the
    user spelt the table."""
    taken: dict[str, str] = {}
    for name, body in settings.models.items():
        fields = _checked_fields(body, f"{place}: {name}")
        for spelling in (name, *fields.aliases):
            if spelling in taken:
                raise ConfigError(f"{place}: {spelling!r} names both {taken[spelling]!r} and {name!r}; rename one")
            taken[spelling] = name
        for key, value in (fields.model_extra or {}).items():
            _check_setting(settings, key, value, f"{place}: {name}: {key}")


def _checked_fields(body: Mapping[str, Any], place: str) -> _OwnFields:
    try:
        return _OwnFields.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        key, message = first["loc"][0], first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{place}: {key}: {message}, got {first['input']!r}") from None


def _check_setting(settings: Settings, key: str, value: Any, place: str) -> None:
    found = KnownNames().find(key, key, f"({place})")
    assert found is not None
    facts = setting_facts()[found.setting]
    if facts.group not in _GROUPS or found.setting in _OF_THE_SERVER:
        raise ConfigError(f"{place} is a setting of the whole server; give it outside of the table")
    try:
        read = getattr(Settings(**{found.setting: value}), found.setting)
    except ValidationError:
        raise ConfigError(f"{place} must be {facts.accepts}, got {value!r}") from None
    is_refused = facts.refused and (not facts.refused_values or read in facts.refused_values)
    if is_refused and read != default_of(found.setting):
        raise ConfigError(f"{place} {value} is not supported: {facts.refused}")


def entry_from_table(settings: Settings, name: str) -> ModelEntry:
    """An entry of `models:` that stands for itself; without `model` its name is the reference."""
    fields, overrides = own_fields(settings, name)
    is_pinned = bool(fields.pinned)
    return ModelEntry(
        name=name,
        reference=fields.model or name,
        names=(name,),
        aliases=tuple(fields.aliases),
        is_pinned=is_pinned,
        is_preloaded=is_pinned if fields.preload is None else fields.preload,
        ttl_s=fields.ttl,
        overrides=overrides,
    )


def with_table(settings: Settings, entry: ModelEntry) -> ModelEntry:
    """entry with what `models:` says about a model of that name."""
    fields, overrides = own_fields(settings, entry.name)
    return ModelEntry(
        name=entry.name,
        reference=fields.model or entry.reference,
        names=entry.names,
        aliases=(*entry.aliases, *fields.aliases),
        is_pinned=entry.is_pinned if fields.pinned is None else fields.pinned,
        is_preloaded=entry.is_preloaded if fields.preload is None else fields.preload,
        ttl_s=fields.ttl,
        overrides=overrides,
    )


def by_every_name(entries: Sequence[ModelEntry]) -> dict[str, ModelEntry]:
    """Entries by every name that requests may use; of two with one alias, the first."""
    found: dict[str, ModelEntry] = {}
    for names in (lambda one: (*one.names, one.name), lambda one: one.aliases):
        for entry in entries:
            for name in names(entry):
                found.setdefault(name, entry)
    return found
