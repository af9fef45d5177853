"""Reads settings from command line, environment and file, in that order of precedence, in two phases.

Phase 1 (read_selection) takes only the settings that select plugins and ignores the rest; phase 2 (read_settings),
with the options of the loaded plugins, takes everything and refuses unknown names. Loads no plugins itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from plugserve.core.errors import ConfigError, UserError, one_line
from plugserve.core.settings.selection import Selection, is_plugin_file
from plugserve.core.settings.setting_names import KnownNames, OptionModels, flag, option_fields
from plugserve.core.settings.settings import Settings, setting_facts
from plugserve.core.settings.settings_checks import SettingsChecks
from plugserve.core.settings.settings_sources import (
    CommandLine,
    Given,
    read_command_line,
    read_environment,
    read_file,
    read_keywords,
    read_vllm_environment,
)
from plugserve.core.settings.vllm_names.taking import take_vllm_settings

SELECTION_KEYS = frozenset(
    {
        "plugin",
        "no_plugin",
        "scheduler",
        "attention",
        "runner",
        "enable_prefix_caching",
        "enable_lora",
        "speculative_model",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "distributed_executor_backend",
        "worker_use_ray",
    }
)


@dataclass(frozen=True, slots=True)
class Reading:
    """Settings, warnings for the user, the command's own switches that were given, and where each setting and option
    (PLUGIN.OPTION) that was given came from, also those with their default values."""

    settings: Settings
    warnings: tuple[str, ...]
    switches: frozenset[str]
    origins: Mapping[str, Origin] = field(default_factory=dict)

    @property
    def given(self) -> frozenset[str]:
        """The names of all settings that were given."""
        return frozenset(name for name in self.origins if "." not in name)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from. source: "command line", "environment" or the file's path. spelling: the user's name for
    it there. is_alias: that is another name than plugserve's."""

    source: str
    spelling: str
    is_alias: bool = False


def read_selection(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    switches: frozenset[str] = frozenset(),
    keywords: Mapping[str, Any] | None = None,
) -> Selection:
    """Phase 1: the selection of plugins. Raises ConfigError for an unreadable file or a malformed selection."""
    places = _read_places(arguments, environ, KnownNames(is_strict=False), switches, keywords or {})
    for given in places:
        given.values = {key: value for key, value in given.values.items() if key in SELECTION_KEYS}
    return _validate(places).selection()


def read_settings(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    options: OptionModels | None = None,
    active: Collection[str] = (),
    installed: Collection[str] = (),
    switches: frozenset[str] = frozenset(),
    keywords: Mapping[str, Any] | None = None,
) -> Reading:
    """Phase 2: all settings. options are the active plugins' models, active and installed the names of plugins;
    keywords are settings that a program gives by name.

    Raises ConfigError with one line that names the place and spelling of what is wrong.
    """
    options = options or {}
    names = KnownNames(options, active or list(options), installed)
    places = _read_places(arguments, environ, names, switches, keywords or {})
    command_line = places[0]
    assert isinstance(command_line, CommandLine)
    settings = _validate(places, *_validate_options(options, places))
    checks = SettingsChecks(settings, places)
    checks.run()
    warnings = [line for given in places for line in given.warnings] + checks.warnings
    return Reading(settings, tuple(warnings), frozenset(command_line.switches), _origins(places))


def _origins(places: Sequence[Given]) -> dict[str, Origin]:
    found: dict[str, Origin] = {}
    for given in places:
        options = [f"{plugin}.{option}" for plugin, table in given.options.items() for option in table]
        for key in (*given.values, *options):
            spelling = given.places.get(key, key).partition(" in ")[0]
            found.setdefault(key, Origin(given.source, spelling, key in given.aliases))
    return found


def _read_places(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    names: KnownNames,
    switches: frozenset[str],
    keywords: Mapping[str, Any],
) -> list[Given]:
    """The values of each place, the most important one first."""
    command_line = read_command_line(arguments, names, switches)
    environment = read_environment(environ, names)
    _take_model(command_line, names.is_strict)
    places: list[Given] = [command_line, read_keywords(keywords, names), environment]
    path = next((given.values["config"] for given in places if given.values.get("config")), None)
    if path:
        places.append(read_file(path, names))
    places.append(read_vllm_environment(environ, names, places))
    take_vllm_settings(places, is_strict=names.is_strict)
    for given in places:
        _make_absolute(given)
    return places


def _take_model(given: CommandLine, is_strict: bool) -> None:
    """`plugserve MODEL` is `plugserve --model MODEL`."""
    if not given.positional:
        return
    if is_strict and len(given.positional) > 1:
        extra = given.positional[1]
        raise ConfigError(f"unexpected argument {extra!r}; to serve several models repeat --model")
    given.values["model"] = [*given.positional, *given.values.get("model", [])]
    given.places.setdefault("model", "MODEL")


def _make_absolute(given: Given) -> None:
    """Make paths absolute, so that child processes find the files from any working directory."""
    for name in ("record_trace", "files_dir", "flight_recorder_dir"):
        if isinstance(path := given.values.get(name), str) and path:
            given.values[name] = str(Path(os.path.expanduser(path)).absolute())
    named = given.values.get("plugin")
    if isinstance(named, str):
        named = [named]
    if isinstance(named, list):
        given.values["plugin"] = [
            str(Path(os.path.expanduser(one)).absolute()) if isinstance(one, str) and is_plugin_file(one) else one
            for one in named
        ]


# ---------------------------------------------------------------- validation


def _validate(
    places: Sequence[Given],
    plugins: dict[str, dict[str, Any]] | None = None,
    secret_options: Sequence[str] = (),
) -> Settings:
    """Settings from the places' values, the first place that has one; ConfigError names the place of a wrong one."""
    values: dict[str, Any] = {}
    for given in reversed(places):
        values |= given.values
    try:
        return Settings(**values, plugins=plugins or {}, secret_options=list(secret_options))
    except ValidationError as error:
        setting = str(error.errors()[0]["loc"][0])
        given = next(given for given in places if setting in given.values)
        facts = setting_facts()[setting]
        got = "a value that is not shown" if facts.is_secret else repr(given.values[setting])
        raise ConfigError(f"{given.places[setting]} must be {facts.accepts}, got {got}") from None


def _validate_options(models: OptionModels, places: Sequence[Given]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The options that were given for each plugin as JSON values, and which of them are secret."""
    plugins: dict[str, dict[str, Any]] = {}
    secrets: list[str] = []
    for plugin, model in models.items():
        raw: dict[str, Any] = {}
        for given in reversed(places):
            raw |= given.options.get(plugin, {})
        raw = {option: _parsed(value, option_fields(model).get(option)) for option, value in raw.items()}
        try:
            validated = model.model_validate(raw)
        except ValidationError as error:
            raise _option_error(plugin, error.errors()[0], raw, places) from None
        except (Exception, SystemExit) as error:
            raise _validator_error(plugin, error) from error
        secrets += [f"{plugin}.{option}" for option in raw if _is_secret(validated, option)]
        if raw:
            try:
                plugins[plugin] = _as_json(plugin, model, validated, raw)
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                raise _validator_error(plugin, error) from error
    return plugins, secrets


def _validator_error(plugin: str, error: BaseException) -> ConfigError:
    """A validator of an options model raises ValueError for a wrong value; anything else is a fault in the plugin."""
    return ConfigError(f"options of plugin {plugin!r}: its options model raised {one_line(error)}")


def _parsed(value: Any, field: FieldInfo | None) -> Any:
    """Text that holds JSON, for options that are not text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")) and field and field.annotation is not str:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _option_error(plugin: str, error: ErrorDetails, raw: dict[str, Any], places: Sequence[Given]) -> ConfigError:
    message = error["msg"][:1].lower() + error["msg"][1:]
    if not error["loc"]:
        return ConfigError(f"options of plugin {plugin!r}: {message}, got {raw!r}")
    option = str(error["loc"][0])
    key = f"{plugin}.{option}"
    if error["type"] == "missing" and option not in raw:
        return ConfigError(f"plugin {plugin!r} needs the option {flag(key)} (it has no default)")
    place = next((given.places[key] for given in places if key in given.places), flag(key))
    return ConfigError(f"{place} (option of plugin {plugin!r}): {message}, got {error['input']!r}")


def _is_secret(options: BaseModel, option: str) -> bool:
    name = next(name for name, info in type(options).model_fields.items() if (info.alias or name) == option)
    return isinstance(getattr(options, name), SecretStr | SecretBytes)


def _as_json(plugin: str, model: type[BaseModel], validated: BaseModel, raw: dict[str, Any]) -> dict[str, Any]:
    """The given options as JSON values that read back to the same options object, secrets in clear."""
    dumped = validated.model_dump(mode="json", by_alias=True, exclude_unset=True)
    candidate = {option: dumped[option] if option in dumped else raw[option] for option in raw}
    for option in raw:
        if _is_secret(validated, option):
            candidate[option] = raw[option]
    try:
        if model.model_validate(candidate) == validated:
            return candidate
    except ValidationError:
        pass  # what pydantic wrote is not what it reads; the raw values are
    try:
        json.dumps(raw)
    except TypeError:
        raise ConfigError(f"options of plugin {plugin!r} must be JSON values, got {raw!r}") from None
    return raw
