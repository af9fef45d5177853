"""Turns the settings of vLLM that were given into plugserve's own, place by place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings_sources import Given
from plugserve.core.settings.vllm_names.json_value import json_object
from plugserve.core.settings.vllm_names.translations import OWN_VALUES
from plugserve.core.settings.vllm_names.vllm_name import Taken, VllmName, as_text
from plugserve.core.settings.vllm_names.vllm_settings import VLLM_SETTINGS

_BOOLEAN: TypeAdapter[bool] = TypeAdapter(bool)


def take_vllm_settings(places: Sequence[Given], *, is_strict: bool) -> None:
    """Put what each value means into its place, and lines for the user into the place's warnings.

    A setting of vLLM counts in the first place that has it. places: the most important one first. Raises ConfigError
    for a value that can't be honoured, unless lenient.
    """
    seen: set[str] = set()
    for given in places:
        taken = [*_own_values(given, is_strict), *_vllm_values(given, seen, is_strict)]
        for place, one, is_json in taken:
            _put(given, one, place, is_strict=is_strict, is_json=is_json)
            _activate(places, given, one.plugins, place)


def _own_values(given: Given, is_strict: bool) -> Iterator[tuple[str, Taken, bool]]:
    for name, translate in OWN_VALUES.items():
        if name not in given.values:
            continue
        place = given.places[name]
        try:
            taken = translate(given.values[name], place)
        except ConfigError:
            if is_strict:
                raise
            continue
        if taken is not None:
            del given.values[name]
            yield place, taken, False


def _vllm_values(given: Given, seen: set[str], is_strict: bool) -> Iterator[tuple[str, Taken, bool]]:
    for name, raw in given.vllm.items():
        setting, place = VLLM_SETTINGS[name], given.places[name]
        try:
            value = _read(setting, raw, place)
            if name not in seen and value not in (None, "", [], {}) and not setting.asks_for_nothing(value):
                yield place, setting.take(value, place), setting.is_json
        except ConfigError:
            if is_strict:
                raise
        seen.add(name)


def _read(setting: VllmName, value: Any, place: str) -> Any:
    if setting.kind == "list":
        entries = value if isinstance(value, list) else [value]
        return [entry for entry in entries if entry not in (None, "")]
    if setting.kind == "value" or value in (None, ""):
        return value
    try:
        return _BOOLEAN.validate_python(value)
    except ValidationError:
        raise ConfigError(f"{place} must be true or false, got {value!r}") from None


def _put(given: Given, taken: Taken, place: str, *, is_strict: bool, is_json: bool) -> None:
    """Errors about a value say where it is: for an object with several keys, place alone doesn't."""
    for name, value in taken.values.items():
        if is_strict and name in given.values and as_text(given.values[name]) != as_text(value):
            raise ConfigError(
                f"{place} and {given.places[name]} give two values for one setting; leave one of them out"
            )
        given.values[name] = value
        given.places[name] = f"{name} of {place}" if is_json else place
        given.aliases.add(name)
    for name, entries in taken.entries.items():
        if is_strict:
            own = json_object(given.values.get(name) or {}, given.places.get(name, place))
            given.values[name] = {**entries, **own}
            given.places.setdefault(name, place)
    for plugin, options in taken.options.items():
        for option, value in options.items():
            given.options.setdefault(plugin, {}).setdefault(option, value)
            given.places.setdefault(f"{plugin}.{option}", f"{plugin}.{option} of {place}" if is_json else place)
            given.aliases.add(f"{plugin}.{option}")
    given.warnings.extend(taken.warnings)


def _activate(places: Sequence[Given], given: Given, plugins: Sequence[str], place: str) -> None:
    """Add plugins to the list that counts: that of the first place that has one."""
    target = next((one for one in places if "plugin" in one.values), given)
    for plugin in plugins:
        named = target.values.get("plugin") or []
        named = [named] if isinstance(named, str) else named
        if isinstance(named, list) and plugin not in named:
            target.values["plugin"] = [*named, plugin]
            target.places.setdefault("plugin", place)
            target.aliases |= {"plugin"} if target.places["plugin"] == place else set()
